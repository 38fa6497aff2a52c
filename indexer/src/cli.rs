//! The command line of memdexd. Owns its words; what they mean is checked in [`indexer::config`].

use std::path::PathBuf;

use clap::Parser;
use indexer::config::Overrides;

/// Keeps a current fingerprint of every page of every VM on this host
///
/// memdexd finds all KVM and QEMU VMs by itself, reads and hashes their memory once, and from then on looks only at pages
/// that were written. Nothing changes in guests or VMMs. Ask it with the `memdex` command, or over HTTP.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    /// Settings in TOML; everything given on the command line wins over it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Where to listen: unix:/path, tcp://host:port (loopback only) or tls://host:port. Can be repeated
    ///
    /// The default is unix:/run/memdex/memdexd.sock, open to root and the group memdex. TCP and TLS want the token in the
    /// file $MEMDEX_TOKEN_FILE (default /etc/memdex/token, made if it is missing). TLS needs a certificate and a
    /// key under [tls] in the configuration.
    #[arg(long, value_name = "URL")]
    listen: Vec<String>,

    /// Another host and the name to call it by in `memdex diff --to NAME`. Can be repeated
    #[arg(long, value_name = "NAME=URL")]
    peer: Vec<String>,

    /// Index only VMs whose name or id matches. Can be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,

    /// Leave VMs alone whose name or id matches, even if included. Can be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,

    /// Threads that read and hash guest memory; half the cores if not given
    #[arg(long, value_name = "N")]
    hash_threads: Option<usize>,

    /// Milliseconds between two looks at what was written; 50 if not given
    #[arg(long, value_name = "MS")]
    tick_ms: Option<u64>,

    /// Share of a core, in percent, for reading known pages again to see that they are what they should be; 0: none
    ///
    /// 0.5 if not given, for all VMs together. What does not agree is counted (memdex_audit_mismatch_total), logged, and makes the VM
    /// advisory.
    #[arg(long, value_name = "PERCENT")]
    audit_percent: Option<f64>,

    /// Seconds that a request of direct I/O (O_DIRECT) of a VMM can be under way at most; 120 if not given
    ///
    /// A page that was read while one may have been under way counts as stale until it has been left alone for so long and was read once more. 0 disregards
    /// direct I/O: then a page that a slow disk writes late is shown wrongly, for good.
    #[arg(long, value_name = "S", hide_short_help = true)]
    settle_seconds: Option<u64>,

    /// Share of one vCPU, in percent, that being watched may cost each guest; 1 if not given
    ///
    /// The first write to a protected page costs the guest a fault. Where its writes would cost more than this in the long run, pages that are written
    /// again and again are left unprotected, and stale, for longer. A sync, and so the end of a migration, does not wait for it.
    #[arg(long, value_name = "PERCENT")]
    guest_budget: Option<f64>,

    /// Use only this witness of writes: write-protect, ebpf or rehash. Can be repeated
    ///
    /// All are used if none is given. Without write-protect nothing is done to a VMM: no thread of it is stopped and no page of its guest
    /// is protected (but for what an earlier memdexd has left: see --detach), and every VM is advisory, read again now and then. Without ebpf no program is loaded into the kernel: writes are
    /// found by scans, and discarded memory late. rehash is never left out.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    witness: Vec<String>,

    /// What to log, on stderr: error, warn, info, debug, trace, or filters such as indexer::watch=debug
    ///
    /// If it is not given, $RUST_LOG counts, then `log` in the configuration, then info.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,

    /// Do not run: take out of the VMMs what an earlier memdexd left there for the next one, and end
    ///
    /// When memdexd ends, in whatever way, it leaves the VMMs' memory write-protected and its maps in the folder SOCKET.maps beside the Unix socket, so that the next one
    /// need not read all memory again. This undoes it, for all VMs or those named with --include and --exclude: the userfaultfd in each VMM is closed (a
    /// thread of it is stopped for some hundred microseconds), and the map is removed. Fails if a memdexd still watches one of them.
    #[arg(long)]
    pub(crate) detach: bool,

    /// Log every event of the eBPF hooks: for developers, slow
    #[arg(long, hide_short_help = true)]
    pub(crate) hook_debug: bool,
}

const EXAMPLES: &str = "\
Examples:
  memdexd
      Index every VM, answer on /run/memdex/memdexd.sock. Then:
        memdex vms
        curl --unix-socket /run/memdex/memdexd.sock http://localhost/v1/vms

  memdexd --listen unix:/run/memdex/memdexd.sock --listen tls://0.0.0.0:7373 --config /etc/memdex/memdexd.toml
      Answer other hosts too. /etc/memdex/memdexd.toml:
        [tls]
        certificate = \"/etc/memdex/host.pem\"
        key = \"/etc/memdex/host.key\"
        ca = \"/etc/memdex/ca.pem\"
        [peer]
        host2 = \"tls://host2.example:7373\"
      Copy /etc/memdex/token to host2; then: memdex diff web1 --to host2

  memdexd --include 'web-*' --exclude web-test --hash-threads 2
      Only some VMs, within a budget.

  systemctl disable --now memdexd && memdexd --config /etc/memdex/memdexd.toml --detach
      Leave the host as it was before memdex came.

  ssh -L 8080:/run/memdex/memdexd.sock root@host
      Look at a host's dashboard and /docs: open http://localhost:8080/

Keys of the configuration: listen, include, exclude (lists), hash_threads,
tick_ms, audit_percent, settle_seconds, guest_budget, witness (list), log,
peer_picture_mib, [peer] NAME = \"URL\", [tls] certificate, key, ca,
[migration] at_once, max_bandwidth, keep_mib.

Needs root, or the capabilities SYS_PTRACE, SYS_ADMIN, BPF, PERFMON and
DAC_READ_SEARCH; what is missing is said at the start, and VMs then show
`advisory` tracking. SIGTERM and SIGINT stop it within five seconds; the next
one goes on where it stopped.";

impl Cli {
    pub(crate) fn overrides(self) -> Overrides {
        // What is said here and now counts before what stands in the environment, and that before the file.
        let log = self.log.or_else(|| std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty()));
        Overrides {
            listen: self.listen,
            peer: self.peer,
            include: self.include,
            exclude: self.exclude,
            hash_threads: self.hash_threads,
            tick_ms: self.tick_ms,
            audit_percent: self.audit_percent,
            settle_seconds: self.settle_seconds,
            guest_budget: self.guest_budget,
            witness: self.witness,
            log,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("memdex vms") && help.contains("unix:/path"));
    }

    #[test]
    fn everything_given_reaches_the_configuration() {
        let cli = Cli::parse_from(
            "memdexd --listen unix:/a --peer b=unix:/b --include x --exclude y --hash-threads 3 --tick-ms 9 --audit-percent 1.5 --settle-seconds 7 --guest-budget 3 --witness ebpf --log warn"
                .split(' '),
        );
        let over = cli.overrides();
        assert_eq!((over.listen, over.peer), (vec!["unix:/a".to_owned()], vec!["b=unix:/b".to_owned()]));
        assert_eq!((over.include, over.exclude), (vec!["x".to_owned()], vec!["y".to_owned()]));
        assert_eq!((over.settle_seconds, over.witness), (Some(7), vec!["ebpf".to_owned()]));
        assert_eq!((over.hash_threads, over.tick_ms, over.log.as_deref()), (Some(3), Some(9), Some("warn")));
        assert_eq!((over.audit_percent, over.guest_budget), (Some(1.5), Some(3.0)));
    }
}

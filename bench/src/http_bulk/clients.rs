//! A thousand clients at once: what they make the daemon hold, whether they read or not.

use std::{
    fs,
    time::{Duration, Instant},
};

use memdex_tests::{Daemon, Scratch};
use memdex_wire::bulk;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::raw;
use crate::{
    daemon::{self, resident},
    figure::{Bound, Figures},
    vmm::Vmm,
};

const CLIENTS: usize = 1000;
const MIB: usize = 256;
const WHOLE: usize = bulk::PAGES_HEADER + (MIB << 8) * bulk::PAGE_RECORD;
/// For so long the slow ones read nothing, while the guest writes.
const SLOW: Duration = Duration::from_secs(15);

pub(super) fn measure(figures: &mut Figures, name: &'static str) {
    eprintln!("{CLIENTS} clients at once, of a VM of {MIB} MiB");
    let scratch = Scratch::new("bench-clients");
    let mut vmm = Vmm::start(&scratch, "vmm", MIB, 0, 1);
    let mut daemon = daemon::start(&scratch, "daemon", &format!("*-{}", vmm.pid()));
    let vm = daemon::indexed(&daemon, vmm.pid());
    let token = fs::read_to_string(daemon.token_file()).expect("the daemon made a token");
    let request =
        raw::head("GET", &format!("/v1/vms/{}/pages", vm.id), bulk::PAGES, token.trim(), 0).into_bytes();
    let port = daemon.port();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { assert!(download(port, &request).await, "one client is answered") });
    let (reading, seconds) = growth(&mut daemon, || {
        let begun = Instant::now();
        let served = runtime.block_on(all(port, &request));
        assert_eq!(served, CLIENTS, "everybody is served");
        begun.elapsed().as_secs_f64()
    });
    let (stopped, served) = growth(&mut daemon, || {
        let slow: Vec<_> = runtime.block_on(async {
            let mut slow = Vec::new();
            for _ in 0..CLIENTS {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the daemon listens");
                stream.write_all(&request).await.expect("the daemon reads");
                slow.push(stream);
            }
            slow
        });
        // Nobody of them reads. What they hold grows with what the guest writes.
        vmm.write(0, 2000 * SLOW.as_secs() as usize, 2000);
        let served = runtime.block_on(async {
            let end = Instant::now() + 2 * SLOW;
            loop {
                if download(port, &request).await {
                    break true;
                }
                if Instant::now() > end {
                    break false;
                }
            }
        });
        drop(slow);
        served
    });
    assert!(served, "a client that reads is served after {CLIENTS} that do not");
    let how = format!(
        "growth of the daemon's resident memory: {reading:.1} MiB while {CLIENTS} clients at once download a map of {:.1} MB each ({seconds:.1} s), {stopped:.1} MiB while {CLIENTS} ask and read nothing and the guest writes",
        WHOLE as f64 / 1e6
    );
    figures.add(name, reading.max(stopped), "MiB", Bound::AtMost(64.0), how);
}

/// By how many MiB the daemon's resident memory exceeded at its peak what it was before.
fn growth<T>(daemon: &mut Daemon, work: impl FnOnce() -> T) -> (f64, T) {
    let pid = daemon.process().pid();
    // Makes the peak what is resident now, proc_pid_clear_refs(5).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("root may do that");
    let before = resident(pid);
    let out = work();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says VmHWM");
    let peak: f64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    ((peak * 1024.0 - before) / f64::from(1 << 20), out)
}

/// All clients at once; how many got the whole map.
async fn all(port: u16, request: &[u8]) -> usize {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let request = request.to_vec();
            tokio::task::spawn(async move {
                // As long as it is told to come back it does.
                for _ in 0..10 {
                    if download(port, &request).await {
                        return true;
                    }
                }
                false
            })
        })
        .collect();
    let mut served = 0;
    for client in clients {
        served += usize::from(client.await.expect("a client does not panic"));
    }
    served
}

/// Whether the whole map came.
async fn download(port: u16, request: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
    if stream.write_all(request).await.is_err() {
        return false;
    }
    let mut buffer = vec![0; 64 << 10];
    let (mut total, mut head) = (0, None);
    loop {
        let read = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return false,
            Ok(read) => read,
        };
        if head.is_none() {
            // It comes in one piece.
            let end = buffer[..read].windows(4).position(|some| some == b"\r\n\r\n");
            let Some(end) = end.filter(|_| buffer.starts_with(b"HTTP/1.1 200")) else { return false };
            head = Some(end + 4);
        }
        total += read;
        if head.is_some_and(|head| total >= head + WHOLE) {
            return true;
        }
    }
}

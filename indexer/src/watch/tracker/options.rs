//! How trackers go about their work: what an operator or a test can set.

use std::time::Duration;

/// How a tracker goes about its work.
#[derive(Debug, Clone)]
pub struct TrackerOptions {
    /// Time from one look at the marks to the next.
    pub tick: Duration,
    /// Shortest time between two audits.
    pub audit: Duration,
    /// Shortest time between two scans of everything, where eBPF does not say what was written.
    pub scan: Duration,
    /// Time from one reading of a region that cannot be watched to the next.
    pub rehash: Duration,
    /// Share of a core that reading known pages again takes, all VMs together; 0: none are.
    pub audit_share: f64,
    /// Longest time that a request of direct I/O can be under way; zero if it is to be disregarded.
    pub settle: Duration,
    /// Share of one vCPU that a guest may lose by being watched, in millionths.
    pub guest_budget_ppm: u32,
    /// Whether a userfaultfd may be made in the VMM.
    pub write_protect: bool,
}

impl Default for TrackerOptions {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(50),
            audit: Duration::from_secs(10),
            scan: Duration::from_millis(200),
            rehash: Duration::from_secs(30),
            audit_share: 0.005,
            settle: Duration::from_secs(120),
            guest_budget_ppm: 10_000,
            write_protect: true,
        }
    }
}

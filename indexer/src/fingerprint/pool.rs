//! The threads that hash: the whole CPU budget of the daemon, shared by all VMs, at low priority.

use std::fmt;

/// How much lower than normal the hashing threads' priority is (see `nice(1)`).
const NICE: i32 = 10;

/// A bounded set of threads for hashing.
pub struct HashPool(rayon::ThreadPool);

impl HashPool {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|index| format!("memdex-hash-{index}"))
            .start_handler(|_| {
                // Linux keeps the nice value for each thread. Failing to be modest is no reason not to work.
                let _ = rustix::process::setpriority_process(None, NICE);
            })
            .build()?;
        Ok(Self(pool))
    }

    /// Runs `work` on the pool and waits for it; parallel iterators inside use only the pool's threads.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }

    /// Number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.0.current_num_threads()
    }
}

impl fmt::Debug for HashPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashPool").field("threads", &self.threads()).finish()
    }
}

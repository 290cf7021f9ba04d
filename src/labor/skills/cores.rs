//! The cores a worker may use: thread pools of stated sizes, made once and shared by all jobs, and the numeric profile of this
//! machine. It must not know any skill.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::ThreadPool;

/// A share of the machine for one job.
pub struct Cores {
    threads: u32,
    pool: Option<Arc<ThreadPool>>,
}

impl Cores {
    /// How many threads may run at once.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Run `work` on these cores: what it does in parallel stays within them.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Run `work(0..count)` on these cores and return the results in index order, whatever finished first.
    pub fn map<T: Send>(&self, count: u32, work: impl Fn(u32) -> T + Send + Sync) -> Vec<T> {
        use rayon::iter::{IntoParallelIterator, ParallelIterator};
        match &self.pool {
            Some(pool) if count > 1 => {
                pool.install(|| (0..count).into_par_iter().map(work).collect())
            }
            _ => (0..count).map(work).collect(),
        }
    }
}

/// Makes [`Cores`] of any size up to its own, keeping one pool per size.
pub struct CorePools {
    limit: u32,
    pools: Mutex<BTreeMap<u32, Arc<Cores>>>,
}

impl CorePools {
    /// Pools of at most `limit` threads (at least one).
    pub fn new(limit: u32) -> Self {
        Self {
            limit: limit.max(1),
            pools: Mutex::new(BTreeMap::new()),
        }
    }

    /// `threads` of them, or all that there are: 0 means all. Where the system gives no threads, the caller's own does the work;
    /// the results are the same. One thread has a pool too, or parallel tensor operations would use every core.
    pub fn take(&self, threads: u32) -> Arc<Cores> {
        let threads = if threads == 0 {
            self.limit
        } else {
            threads.min(self.limit)
        };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let cores = pools.entry(threads).or_insert_with(|| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads as usize)
                .build()
                .ok()
                .map(Arc::new);
            Arc::new(Cores { threads, pool })
        });
        Arc::clone(cores)
    }
}

/// Backend, version, architecture, SIMD level and math library: what decides the last bit of a result. Machines with equal
/// profiles give equal bytes; `exp`, `log`, `sin` and `cos` come from the C library, which is why it is part of the name.
pub fn numeric_profile() -> String {
    format!(
        "flex/0.22.1/{}/{}/{}",
        std::env::consts::ARCH,
        simd_level(),
        math_library()
    )
}

/// The level that flex (through `macerator`) and glibc's own dispatch choose at run time on this machine.
fn simd_level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f")
            && has!("avx512bw")
            && has!("avx512cd")
            && has!("avx512dq")
            && has!("avx512vl")
        {
            return "avx512";
        }
        if has!("avx2") && has!("fma") {
            return "avx2";
        }
        if has!("sse4.2") { "sse42" } else { "sse2" }
    }
    #[cfg(target_arch = "aarch64")]
    {
        "neon"
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "scalar"
    }
}

fn math_library() -> String {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the function takes nothing and returns a static, NUL-terminated string.
        let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
        format!("glibc-{}", version.to_string_lossy())
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        format!(
            "{}-{}",
            std::env::consts::OS,
            if cfg!(target_env = "musl") {
                "musl"
            } else {
                "system"
            }
        )
    }
}

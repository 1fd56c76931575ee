//! Progress reports, and the request to stop that they bring back.

use std::ffi::{c_char, c_int, c_void, CString};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::failure::Failure;

pub type Report = unsafe extern "C" fn(*mut c_void, *const c_char, u64, u64) -> c_int;

/// How long the caller waits at most between two reports.
pub const TICK: Duration = Duration::from_millis(100);

struct State {
    file: CString,
    done: u64,
    total: u64,
    last: Instant,
}

pub struct Watch {
    report: Option<Report>,
    context: *mut c_void,
    state: Mutex<State>,
    cancelled: AtomicBool,
}

// Safety: only the thread that runs the download uses `context`, while the C
// call that brought it lasts; connections merely have to be Send and Sync.
unsafe impl Send for Watch {}
unsafe impl Sync for Watch {}

impl Watch {
    pub fn new(report: Option<Report>, context: *mut c_void) -> Self {
        Watch {
            report,
            context,
            state: Mutex::new(State {
                file: CString::default(),
                done: 0,
                total: 0,
                last: Instant::now(),
            }),
            cancelled: AtomicBool::new(false),
        }
    }

    /// A new file; reported at once.
    pub fn begin(&self, file: &str, done: u64, total: u64) -> Result<(), Failure> {
        if let Ok(mut state) = self.state.lock() {
            state.file = CString::new(file).unwrap_or_default();
            state.done = done;
            state.total = total;
            self.call(&mut state);
        }
        self.check()
    }

    pub fn advance(&self, done: u64) -> Result<(), Failure> {
        if let Ok(mut state) = self.state.lock() {
            state.done = done;
            if done == state.total || state.last.elapsed() >= TICK {
                self.call(&mut state);
            }
        }
        self.check()
    }

    /// Nothing new; lets the caller stop the wait.
    pub fn tick(&self) -> Result<(), Failure> {
        if let Ok(mut state) = self.state.lock() {
            if state.last.elapsed() >= TICK {
                self.call(&mut state);
            }
        }
        self.check()
    }

    pub fn sleep(&self, duration: Duration) -> Result<(), Failure> {
        let end = Instant::now() + duration;
        loop {
            self.tick()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    pub fn check(&self) -> Result<(), Failure> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Failure::Cancelled);
        }
        Ok(())
    }

    fn call(&self, state: &mut State) {
        state.last = Instant::now();
        if self.cancelled.load(Ordering::Relaxed) {
            return;
        }
        if let Some(report) = self.report {
            // Safety: as the C caller promises for the time of its call.
            let stop =
                unsafe { report(self.context, state.file.as_ptr(), state.done, state.total) };
            if stop != 0 {
                self.cancelled.store(true, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn stop_at_ten(_: *mut c_void, _: *const c_char, done: u64, _: u64) -> c_int {
        c_int::from(done >= 10)
    }

    #[test]
    fn a_report_can_stop_the_work() {
        let watch = Watch::new(Some(stop_at_ten), std::ptr::null_mut());
        assert!(watch.begin("file", 0, 10).is_ok());
        assert!(matches!(watch.advance(10), Err(Failure::Cancelled)));
        assert!(matches!(
            watch.sleep(Duration::from_secs(3600)),
            Err(Failure::Cancelled)
        ));
    }
}

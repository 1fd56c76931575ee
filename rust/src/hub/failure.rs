//! Why a download ended, or has to be tried again.

use std::path::Path;
use std::time::Duration;

#[derive(Debug)]
pub enum Failure {
    /// The hub answers what no retry changes.
    Network(String),
    /// No such repository, or none that the token may see.
    NotFound(String),
    /// The cache can't be read or written.
    File(String),
    Argument(String),
    Cancelled,
    /// May go better the next time.
    Transient(Transient),
}

#[derive(Debug)]
pub struct Transient {
    pub what: String,
    /// How long the server asks to wait.
    pub wait: Option<Duration>,
    /// No server answered at all.
    pub unreachable: bool,
    /// What arrived has the wrong content.
    pub corrupt: bool,
}

impl Failure {
    pub fn transient(what: impl Into<String>) -> Self {
        Failure::Transient(Transient {
            what: what.into(),
            wait: None,
            unreachable: false,
            corrupt: false,
        })
    }

    pub fn unreachable(what: impl Into<String>) -> Self {
        Failure::Transient(Transient {
            what: what.into(),
            wait: None,
            unreachable: true,
            corrupt: false,
        })
    }

    pub fn corrupt(what: impl Into<String>) -> Self {
        Failure::Transient(Transient {
            what: what.into(),
            wait: None,
            unreachable: false,
            corrupt: true,
        })
    }

    pub fn file(action: &str, path: &Path, error: &std::io::Error) -> Self {
        Failure::File(format!("cannot {action} {}: {error}", path.display()))
    }
}

//! A connection that waits in short steps: it ends when nothing arrives for
//! too long or the caller wants to stop, however long the transfer may take.
//! And a search for hosts that tells a wrong name from a broken connection.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration as UreqDuration;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::Error;

use super::watch::{Watch, TICK};

/// Wraps what the connectors before it made.
pub struct PatientConnector {
    pub watch: Arc<Watch>,
    pub stall: Duration,
}

impl<In: Transport> Connector<In> for PatientConnector {
    type Out = PatientTransport<In>;

    fn connect(
        &self,
        _: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| PatientTransport {
            inner,
            watch: Arc::clone(&self.watch),
            stall: self.stall,
        }))
    }
}

pub struct PatientTransport<In: Transport> {
    inner: In,
    watch: Arc<Watch>,
    stall: Duration,
}

impl<In: Transport> Transport for PatientTransport<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let limited = NextTimeout {
            after: self.stall.min(*timeout.after).into(),
            reason: timeout.reason,
        };
        self.inner.transmit_output(amount, limited)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let end = Instant::now() + self.stall.min(*timeout.after);
        loop {
            if self.watch.tick().is_err() {
                return Err(Error::Io(io::Error::new(io::ErrorKind::Other, "cancelled")));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout(timeout.reason));
            }
            let step = NextTimeout {
                after: UreqDuration::from(left.min(TICK)),
                reason: timeout.reason,
            };
            match self.inner.await_input(step) {
                Err(Error::Timeout(_)) => {}
                other => return other,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

impl fmt::Debug for PatientConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PatientConnector")
    }
}

#[derive(Debug, Default)]
pub struct NameResolver(DefaultResolver);

impl Resolver for NameResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        self.0
            .resolve(uri, config, timeout)
            .map_err(|error| match error {
                Error::Io(_) => Error::HostNotFound,
                other => other,
            })
    }
}

impl<In: Transport> fmt::Debug for PatientTransport<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PatientTransport")
    }
}

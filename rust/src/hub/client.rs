//! Requests to the hub: who sees the token, what an answer means, how often
//! to try again.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::transport::{
    ConnectProxyConnector, Connector, RustlsConnector, TcpConnector,
};
use ureq::{Agent, Body, Proxy, ProxyProtocol};

use super::address;
use super::failure::{Failure, Transient};
use super::transport::{NameResolver, PatientConnector};
use super::watch::Watch;

const MAX_REDIRECTS: usize = 8;
/// Enough for the list of a repository of a hundred thousand files.
const MAX_LIST_BYTES: u64 = 64 << 20;

pub struct Settings {
    pub endpoint: String,
    pub token: Option<String>,
    pub repository: String,
    pub revision: String,
    pub connect_timeout: Duration,
    pub stall_timeout: Duration,
    pub max_attempts: u32,
    pub first_backoff: Duration,
    pub longest_backoff: Duration,
    pub longest_retry_after: Duration,
}

pub struct Client {
    pub settings: Settings,
    pub watch: Arc<Watch>,
    endpoint: Uri,
    direct: Agent,
    /// What the environment names, and the way through it unless its kind
    /// isn't supported.
    proxy: Option<Proxy>,
    proxied: Option<Agent>,
    /// Whether any server has answered yet.
    reached: Cell<bool>,
}

/// Where a file's content is, and what it must be.
pub struct Metadata {
    pub address: Uri,
    pub etag: String,
    pub size: u64,
}

impl Client {
    pub fn new(settings: Settings, watch: Arc<Watch>) -> Result<Self, Failure> {
        let endpoint = address::parse(&settings.endpoint).ok_or_else(|| {
            Failure::Argument(format!(
                "HF_ENDPOINT is '{}', but must begin with http:// or https://",
                settings.endpoint
            ))
        })?;
        if let Some(token) = &settings.token {
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(Failure::Argument(
                    "the hub token (HF_TOKEN) holds blanks or characters that no token has"
                        .to_owned(),
                ));
            }
        }
        let proxy = Proxy::try_from_env();
        let supported = proxy
            .clone()
            .filter(|proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https));
        Ok(Client {
            direct: agent(&settings, &watch, None),
            proxied: supported.map(|proxy| agent(&settings, &watch, Some(proxy))),
            proxy,
            settings,
            watch,
            endpoint,
            reached: Cell::new(false),
        })
    }

    /// The text of `path` below the endpoint, redirects followed.
    pub fn read_text(&self, path: &str) -> Result<String, Failure> {
        let mut response = self.follow(self.url(path)?, |uri| self.send("GET", uri, 0, true))?;
        self.check_status(&response, None)?;
        let bytes = response
            .body_mut()
            .with_config()
            .limit(MAX_LIST_BYTES)
            .read_to_vec()
            .map_err(|error| self.transport_failure(&self.endpoint, error))?;
        String::from_utf8(bytes)
            .map_err(|_| Failure::Network(format!("{}{path} is no UTF-8", self.settings.endpoint)))
    }

    /// What the hub says about one file.
    pub fn metadata(&self, path: &str, file: &str) -> Result<Metadata, Failure> {
        let mut uri = self.url(path)?;
        let (mut etag, mut size) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send("HEAD", &uri, 0, true)?;
            let headers = response.headers();
            etag = etag.or_else(|| text_of(headers, "x-linked-etag"));
            size = size.or_else(|| number_of(headers, "x-linked-size"));
            let Some(target) = redirect_of(&uri, &response)? else {
                self.check_status(&response, Some(file))?;
                etag = etag.or_else(|| text_of(headers, "etag"));
                size = size.or_else(|| number_of(headers, "content-length"));
                return complete_metadata(uri, etag, size, file);
            };
            let leaves_hub = address::origin(&target) != address::origin(&uri);
            uri = target;
            if leaves_hub && etag.is_some() && size.is_some() {
                return complete_metadata(uri, etag, size, file);
            }
        }
        Err(too_many_redirects(&uri))
    }

    /// The content from `offset` on; the caller looks at the status.
    pub fn content(&self, uri: &Uri, offset: u64) -> Result<Response<Body>, Failure> {
        self.follow(uri.clone(), |uri| self.send("GET", uri, offset, false))
    }

    /// Runs `attempt` until it succeeds, fails for good, or failed too often
    /// while the `reached` size hardly grew.
    pub fn retrying<T>(
        &self,
        reached: impl Fn() -> u64,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        const PROGRESS_BYTES: u64 = 1 << 16;
        let (mut failures, mut corruptions) = (0, 0);
        let mut backoff = self.settings.first_backoff;
        let mut reached_before = reached();
        loop {
            let failure = match attempt() {
                Err(Failure::Transient(failure)) => failure,
                other => return other,
            };
            if reached() >= reached_before + PROGRESS_BYTES {
                failures = 0;
                backoff = self.settings.first_backoff;
            }
            reached_before = reached();
            failures += 1;
            corruptions += u32::from(failure.corrupt);
            self.check_hope(&failure, failures, corruptions)?;
            self.watch.sleep(failure.wait.unwrap_or(backoff))?;
            backoff = (backoff * 2).min(self.settings.longest_backoff);
        }
    }

    /// Fails if another try makes no sense.
    fn check_hope(
        &self,
        failure: &Transient,
        failures: u32,
        corruptions: u32,
    ) -> Result<(), Failure> {
        const MAX_CORRUPTIONS: u32 = 2;
        const MAX_UNREACHABLE: u32 = 2;
        let what = &failure.what;
        if let Some(wait) = failure
            .wait
            .filter(|&wait| wait > self.settings.longest_retry_after)
        {
            return Err(Failure::Network(format!(
                "{what}: it asks to wait {} s; try again then{}",
                wait.as_secs(),
                self.token_raises_limits()
            )));
        }
        let hopeless = failure.unreachable && !self.reached.get() && failures >= MAX_UNREACHABLE;
        if hopeless || failures >= self.settings.max_attempts || corruptions >= MAX_CORRUPTIONS {
            let times = if failures == 1 { "try" } else { "tries" };
            let limits = if failure.wait.is_some() {
                self.token_raises_limits()
            } else {
                ""
            };
            return Err(Failure::Network(format!(
                "{what} ({failures} {times}){limits}"
            )));
        }
        Ok(())
    }

    fn token_raises_limits(&self) -> &'static str {
        match self.settings.token {
            Some(_) => "",
            None => " (with HF_TOKEN set, the hub's limits are higher)",
        }
    }

    fn url(&self, path: &str) -> Result<Uri, Failure> {
        let text = format!("{}{path}", self.settings.endpoint);
        address::parse(&text)
            .ok_or_else(|| Failure::Argument(format!("{text} is no address of a hub")))
    }

    fn follow(
        &self,
        mut uri: Uri,
        send: impl Fn(&Uri) -> Result<Response<Body>, Failure>,
    ) -> Result<Response<Body>, Failure> {
        for _ in 0..=MAX_REDIRECTS {
            let response = send(&uri)?;
            match redirect_of(&uri, &response)? {
                Some(target) => uri = target,
                None => return Ok(response),
            }
        }
        Err(too_many_redirects(&uri))
    }

    /// One request without redirects. `short`: a small answer, which must have
    /// arrived within a few times the stall timeout.
    fn send(
        &self,
        method: &str,
        uri: &Uri,
        offset: u64,
        short: bool,
    ) -> Result<Response<Body>, Failure> {
        const SHORT_STALLS: u32 = 4;
        self.watch.check()?;
        let agent = self.agent_for(uri)?;
        let mut request = match method {
            "HEAD" => agent.head(uri),
            _ => agent.get(uri),
        };
        if let Some(token) = self
            .settings
            .token
            .as_ref()
            .filter(|_| self.may_see_token(uri))
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if offset > 0 {
            request = request.header("range", format!("bytes={offset}-"));
        }
        if short {
            let limit = self.settings.stall_timeout * SHORT_STALLS;
            request = request.config().timeout_global(Some(limit)).build();
        }
        let response = request
            .call()
            .map_err(|error| self.transport_failure(uri, error))?;
        self.reached.set(true);
        Ok(response)
    }

    /// The environment's proxy, unless NO_PROXY has the address or it is this
    /// machine.
    pub fn proxy_for(&self, uri: &Uri) -> Option<&Proxy> {
        let proxy = self.proxy.as_ref()?;
        (!address::is_loopback(uri) && !proxy.is_no_proxy(uri)).then_some(proxy)
    }

    fn agent_for(&self, uri: &Uri) -> Result<&Agent, Failure> {
        if self.proxy_for(uri).is_none() {
            return Ok(&self.direct);
        }
        self.proxied.as_ref().ok_or_else(|| {
            Failure::Argument(
                "the environment names a SOCKS proxy, but only http and https proxies are \
                 supported: set HTTPS_PROXY, or NO_PROXY for this host"
                    .to_owned(),
            )
        })
    }

    /// Whether the address is the hub's own, not that of a storage behind it.
    pub fn is_hub(&self, uri: &Uri) -> bool {
        address::origin(uri) == address::origin(&self.endpoint)
    }

    fn may_see_token(&self, uri: &Uri) -> bool {
        self.is_hub(uri) && address::is_private(uri)
    }
}

fn agent(settings: &Settings, watch: &Arc<Watch>, proxy: Option<Proxy>) -> Agent {
    let config = Config::builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy)
        .timeout_resolve(Some(settings.connect_timeout))
        .timeout_connect(Some(settings.connect_timeout))
        .user_agent(concat!("mlx-lm.cpp/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::PlatformVerifier)
                .build(),
        )
        .build();
    let connector = ()
        .chain(ConnectProxyConnector::default())
        .chain(TcpConnector::default())
        .chain(PatientConnector {
            watch: Arc::clone(watch),
            stall: settings.stall_timeout,
        })
        .chain(RustlsConnector::default());
    Agent::with_parts(config, connector, NameResolver::default())
}

fn too_many_redirects(uri: &Uri) -> Failure {
    Failure::Network(format!(
        "{} redirects without end",
        uri.host().unwrap_or("the hub")
    ))
}

fn redirect_of(uri: &Uri, response: &Response<Body>) -> Result<Option<Uri>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = text_of(response.headers(), "location").unwrap_or_default();
    address::redirect(uri, &location).map(Some)
}

fn complete_metadata(
    address: Uri,
    etag: Option<String>,
    size: Option<u64>,
    file: &str,
) -> Result<Metadata, Failure> {
    let etag = etag.unwrap_or_default();
    let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
    let usable = !etag.is_empty()
        && etag.len() <= 128
        && !etag.starts_with('.')
        && etag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    match (usable, size) {
        (true, Some(size)) => Ok(Metadata {
            address,
            etag,
            size,
        }),
        _ => Err(Failure::Network(format!(
            "{} says neither hash nor size of {file} as a model hub does: check HF_ENDPOINT and \
             the proxy settings",
            address.host().unwrap_or("the server")
        ))),
    }
}

pub fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

pub fn number_of(headers: &HeaderMap, name: &str) -> Option<u64> {
    text_of(headers, name)?.parse().ok()
}

//! Requests to the hub: who sees the token, what an answer means, how often
//! to try again.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    ConnectProxyConnector, Connector, RustlsConnector, TcpConnector,
};
use ureq::{Agent, Body, Error, Proxy, ProxyProtocol, Timeout};

use super::address;
use super::failure::{Failure, Transient};
use super::transport::PatientConnector;
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

    /// The way to an address: through the environment's proxy, unless NO_PROXY
    /// has it or it is this machine.
    fn agent_for(&self, uri: &Uri) -> Result<&Agent, Failure> {
        match &self.proxy {
            Some(proxy) if !address::is_loopback(uri) && !proxy.is_no_proxy(uri) => {
                self.proxied.as_ref().ok_or_else(|| {
                    Failure::Argument(
                        "the environment names a SOCKS proxy, but only http and https proxies \
                         are supported: set HTTPS_PROXY, or NO_PROXY for this host"
                            .to_owned(),
                    )
                })
            }
            _ => Ok(&self.direct),
        }
    }

    /// Whether the address is the hub's own, not that of a storage behind it.
    pub fn is_hub(&self, uri: &Uri) -> bool {
        address::origin(uri) == address::origin(&self.endpoint)
    }

    fn may_see_token(&self, uri: &Uri) -> bool {
        self.is_hub(uri) && address::is_private(uri)
    }

    pub fn transport_failure(&self, uri: &Uri, error: Error) -> Failure {
        if self.watch.check().is_err() {
            return Failure::Cancelled;
        }
        let host = uri.authority().map_or("", |authority| authority.as_str());
        match error {
            Error::HostNotFound => Failure::unreachable(format!(
                "cannot reach {host}: no such host (is there a network, or does HF_ENDPOINT \
                 or a proxy setting name a wrong one?)"
            )),
            Error::Timeout(Timeout::Connect | Timeout::Resolve) => Failure::unreachable(format!(
                "cannot reach {host}: no answer within {} s",
                self.settings.connect_timeout.as_secs_f64()
            )),
            Error::Timeout(_) => Failure::transient(format!(
                "{host} is too slow: nothing came for {} s (HF_HUB_DOWNLOAD_TIMEOUT sets the \
                 limit)",
                self.settings.stall_timeout.as_secs_f64()
            )),
            Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Failure::unreachable(format!("cannot reach {host}: connection refused"))
            }
            Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                untrusted(host, &error.to_string())
            }
            Error::Rustls(error) => untrusted(host, &error.to_string()),
            Error::Io(error) => {
                Failure::transient(format!("the connection to {host} broke: {error}"))
            }
            Error::Protocol(error) => {
                Failure::transient(format!("{host} answers with broken HTTP: {error}"))
            }
            Error::BodyExceedsLimit(limit) => {
                Failure::Network(format!("the answer of {host} is longer than {limit} bytes"))
            }
            Error::ConnectProxyFailed(why) => {
                Failure::Network(format!("the proxy refuses the way to {host}: {why}"))
            }
            other => Failure::Network(format!("the request to {host} failed: {other}")),
        }
    }

    /// Turns a status that isn't success into what to do about it. `file`:
    /// the file asked for, none for the list of files.
    pub fn check_status(
        &self,
        response: &Response<Body>,
        file: Option<&str>,
    ) -> Result<(), Failure> {
        let status = response.status().as_u16();
        if (200..300).contains(&status) {
            return Ok(());
        }
        let Settings {
            endpoint,
            repository,
            revision,
            token,
            ..
        } = &self.settings;
        let headers = response.headers();
        let code = text_of(headers, "x-error-code").unwrap_or_default();
        let said = text_of(headers, "x-error-message").map_or(String::new(), |text| {
            format!(": {}", text.chars().take(200).collect::<String>())
        });
        let gated = code == "GatedRepo";
        Err(match status {
            401 | 403 if gated => Failure::Network(format!(
                "{repository} is a gated model: ask for access at {endpoint}/{repository}, then \
                 set HF_TOKEN to a token of that account ({endpoint}/settings/tokens)"
            )),
            401 if token.is_some() => Failure::Network(format!(
                "the hub rejects the token of HF_TOKEN or the token file (401{said}): make a new \
                 one at {endpoint}/settings/tokens, or remove it for public models"
            )),
            401 => Failure::NotFound(format!(
                "the hub has no public model {repository} (401): check the name; for a private or \
                 gated model set HF_TOKEN to a token from {endpoint}/settings/tokens"
            )),
            403 => Failure::Network(format!(
                "the hub denies access to {repository} (403{said}): HF_TOKEN must belong to an \
                 account that may read it"
            )),
            404 if code == "RevisionNotFound" => Failure::Network(format!(
                "{repository} has no revision '{revision}': see its branches and tags at \
                 {endpoint}/{repository}/tree/main"
            )),
            404 => match file {
                Some(file) => Failure::Network(format!(
                    "the hub lists {file} of {repository}, but doesn't have it (404)"
                )),
                None if revision == "main" || code == "RepoNotFound" => {
                    Failure::NotFound(format!("the hub has no model {repository} (404): check the name"))
                }
                None => Failure::NotFound(format!(
                    "the hub has no model {repository} with a revision '{revision}' (404): check both"
                )),
            },
            429 => Failure::Transient(Transient {
                what: "the hub limits the number of requests (429)".to_owned(),
                wait: number_of(headers, "retry-after").map(Duration::from_secs),
                unreachable: false,
                corrupt: false,
            }),
            408 | 500..=599 => Failure::Transient(Transient {
                what: format!("the hub has a fault of its own ({status}{said})"),
                wait: number_of(headers, "retry-after").map(Duration::from_secs),
                unreachable: false,
                corrupt: false,
            }),
            _ => Failure::Network(format!(
                "the hub answers with status {status}{said} when asked for {}",
                file.unwrap_or("the list of files")
            )),
        })
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
    Agent::with_parts(config, connector, DefaultResolver::default())
}

fn untrusted(host: &str, why: &str) -> Failure {
    Failure::Network(format!(
        "the connection to {host} is not trusted: {why} (are the system's certificates \
         installed, e.g. the package ca-certificates? SSL_CERT_FILE names others)"
    ))
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

//! What a failed request means, and what to do about it.

use std::io;
use std::time::Duration;

use ureq::http::{Response, Uri};
use ureq::{Body, Error, Timeout};

use super::address;
use super::client::{number_of, text_of, Client, Settings};
use super::failure::{Failure, Transient};

impl Client {
    pub fn transport_failure(&self, uri: &Uri, error: Error) -> Failure {
        if self.watch.check().is_err() {
            return Failure::Cancelled;
        }
        let host = &self.way_to(uri);
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

    /// The host, and the proxy on the way to it; never what they are told.
    fn way_to(&self, uri: &Uri) -> String {
        let (_, host, port) = address::origin(uri);
        match self.proxy_for(uri) {
            Some(proxy) => format!(
                "{host} (through the proxy {}:{})",
                proxy.host(),
                proxy.port()
            ),
            None => format!("{host}:{port}"),
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

fn untrusted(host: &str, why: &str) -> Failure {
    Failure::Network(format!(
        "the connection to {host} is not trusted: {why} (are the system's certificates \
         installed, e.g. the package ca-certificates? SSL_CERT_FILE names others)"
    ))
}

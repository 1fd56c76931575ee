//! Addresses: where a redirect leads, and who may see the token.

use ureq::http::Uri;

use super::failure::Failure;

pub fn parse(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let web = matches!(uri.scheme_str(), Some("http" | "https"));
    (web && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}

/// Scheme, host and port.
pub fn origin(uri: &Uri) -> (String, String, u16) {
    let scheme = uri.scheme_str().unwrap_or("").to_ascii_lowercase();
    let default_port = if scheme == "https" { 443 } else { 80 };
    let host = uri.host().unwrap_or("").to_ascii_lowercase();
    (scheme, host, uri.port_u16().unwrap_or(default_port))
}

/// Whether the host is this machine.
pub fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether what is sent can be read by nobody on the way.
pub fn is_private(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https") || is_loopback(uri)
}

/// The target of a `Location` header in an answer of `from`.
pub fn redirect(from: &Uri, location: &str) -> Result<Uri, Failure> {
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let host = from.host().unwrap_or("");
    let target = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        location.to_owned()
    };
    let target = parse(&target)
        .ok_or_else(|| Failure::Network(format!("{host} redirects to an address that is none")))?;
    if is_private(from) && !is_private(&target) {
        return Err(Failure::Network(format!(
            "{host} redirects to an unencrypted address of {}: refused",
            target.host().unwrap_or("")
        )));
    }
    Ok(target)
}

/// Percent-encodes all but unreserved characters and those of `kept`.
pub fn encode(text: &str, kept: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let character = char::from(byte);
        if byte.is_ascii_alphanumeric()
            || "-._~".contains(character)
            || (byte.is_ascii() && kept.contains(character))
        {
            encoded.push(character);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        parse(text).expect(text)
    }

    #[test]
    fn only_web_addresses_are_read() {
        assert!(parse("https://hub.example/a?b=c").is_some());
        for bad in [
            "",
            "hub.example",
            "ftp://hub.example/",
            "https://",
            "file:///etc",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn origins_know_default_ports() {
        assert_eq!(
            origin(&uri("https://A.example/x")),
            origin(&uri("https://a.example:443/"))
        );
        assert_ne!(
            origin(&uri("https://a.example/")),
            origin(&uri("http://a.example/"))
        );
        assert_ne!(
            origin(&uri("http://a.example/")),
            origin(&uri("http://a.example:81/"))
        );
    }

    #[test]
    fn redirects_are_relative_or_absolute_and_keep_encryption() {
        let from = uri("https://hub.example/a/b");
        assert_eq!(
            redirect(&from, "/c?d").unwrap(),
            uri("https://hub.example/c?d")
        );
        assert_eq!(
            redirect(&from, "//cdn.example/c").unwrap(),
            uri("https://cdn.example/c")
        );
        assert_eq!(
            redirect(&from, "https://cdn.example/").unwrap(),
            uri("https://cdn.example/")
        );
        assert!(redirect(&from, "http://cdn.example/").is_err());
        assert!(redirect(&from, "c").is_err());
        assert!(redirect(&uri("http://127.0.0.1:1/"), "http://localhost:2/").is_ok());
    }

    #[test]
    fn loopback_is_seen() {
        for here in [
            "http://127.0.0.1:8/",
            "http://localhost/",
            "http://[::1]:8/",
        ] {
            assert!(is_loopback(&uri(here)), "{here}");
        }
        assert!(!is_loopback(&uri("http://localhost.example/")));
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encode("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ü#.json", "/"), "a%20b/%C3%BC%23.json");
    }
}

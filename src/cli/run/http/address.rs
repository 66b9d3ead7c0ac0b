//! Where requests go: an [`Address`], from the text of a URL. Pure.

use hyper::Uri;

/// A URL in its parts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Address {
    pub(super) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
    /// Host and port, as the endpoint is told them.
    pub(super) authority: String,
    /// Path and query: what stands in the first line of a request.
    pub(super) target: Uri,
    /// All but the query, for people: a query may hold a secret.
    pub(super) shown: String,
}

impl Address {
    /// Reads a URL. An error does not repeat it: it may hold a secret.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("the URL can't be read: {error}"))?;
        let (scheme, tls, usual) = match uri.scheme_str() {
            Some("http") => ("http", false, 80),
            Some("https") => ("https", true, 443),
            _ => return Err("the URL must begin with http:// or https://".to_owned()),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("the URL has a user name or password: give them as a header, Authorization, \
                        with a secret as its value"
                .to_owned());
        }
        let host = uri.host().unwrap_or_default();
        let port = match &authority[host.len()..] {
            "" | ":" => usual,
            _ => uri.port_u16().filter(|port| *port > 0).ok_or("the URL's port must be from 1 to 65535")?,
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        if host.is_empty() {
            return Err("the URL names no host".to_owned());
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let target = target.parse().map_err(|error| format!("the URL's path can't be read: {error}"))?;
        let authority = authority.trim_end_matches(':').to_owned();
        let shown = format!("{scheme}://{authority}{}", uri.path());
        Ok(Self { tls, host, port, authority, target, shown })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_into_its_parts_and_shown_without_its_query() {
        for (url, tls, host, port, authority, target, shown) in [
            ("http://a.example", false, "a.example", 80, "a.example", "/", "http://a.example/"),
            (
                "https://a.example:8443/x?key=hunter2#y",
                true,
                "a.example",
                8443,
                "a.example:8443",
                "/x?key=hunter2",
                "https://a.example:8443/x",
            ),
            ("HTTP://[::1]:81/x/", false, "::1", 81, "[::1]:81", "/x/", "http://[::1]:81/x/"),
            ("https://127.0.0.1:/?q", true, "127.0.0.1", 443, "127.0.0.1", "/?q", "https://127.0.0.1/"),
        ] {
            let expected = Address {
                tls,
                host: host.to_owned(),
                port,
                authority: authority.to_owned(),
                target: target.parse().expect("a path"),
                shown: shown.to_owned(),
            };
            assert_eq!(Address::parse(url), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for url in [
            "",
            "/hunter2",
            "hunter2.example",
            "ftp://hunter2.example/",
            "http://me:hunter2@a.example/",
            "https://hunter2@a.example/",
            "http://hunter2.example:0/",
            "http://hunter2.example:65536/",
            "http://hunter2.example:x/",
            "http:///hunter2",
            "http://:80/hunter2",
            "http://hünter2.example/",
            "http://a.example/hunter2 x",
        ] {
            let why = Address::parse(url).expect_err(url);
            assert!(!why.contains("hunter2") && !why.contains("hünter2"), "{why}");
        }
    }
}

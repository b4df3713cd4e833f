//! `proxy.pac`: how browsers find the forward proxy by themselves.

use super::keep::Keep;
use http::HeaderMap;
use http::header::HOST;
use std::net::SocketAddr;
use std::rc::Rc;

/// The script; none where there is no forward proxy, or none that TCP reaches.
pub fn script(keep: &Rc<Keep>, headers: &HeaderMap) -> Option<String> {
    let config = keep.config.borrow();
    if config.server.forward_clients.is_empty() {
        return None;
    }
    let asked = headers.get(HOST).and_then(|v| v.to_str().ok());
    let address = keep.listeners.borrow().iter().find_map(|l| l.bound.parse::<SocketAddr>().ok())?;
    Some(text(&seen_as(address, asked), &config.server.forward_connect_ports, config.server.forward_private))
}

/// One who listens on all addresses is where the script was asked for.
fn seen_as(address: SocketAddr, asked: Option<&str>) -> String {
    if !address.ip().is_unspecified() {
        return address.to_string();
    }
    let host = asked.and_then(|h| h.parse::<http::uri::Authority>().ok());
    let host = host.as_ref().map_or("localhost", |a| a.host());
    // it becomes part of a script
    let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b));
    format!("{}:{}", if plain { host } else { "localhost" }, address.port())
}

fn text(proxy: &str, connect_ports: &[u16], private: bool) -> String {
    let ports: Vec<String> = connect_ports.iter().map(ToString::to_string).collect();
    let direct = match private {
        true => "",
        false => {
            "  if (isPlainHostName(host) || shExpMatch(host, \"*.local\") || shExpMatch(host, \"localhost\") ||\n\
             \x20     /^(127|10|192\\.168|169\\.254|172\\.(1[6-9]|2[0-9]|3[01]))\\.[0-9.]+$/.test(host) || host.indexOf(\":\") >= 0)\n\
             \x20   return \"DIRECT\";\n"
        }
    };
    format!(
        "function FindProxyForURL(url, host) {{\n{direct}\
         \x20 var parts = /^([a-z]+):\\/\\/[^\\/?#]*?(?::([0-9]+))?(?:[\\/?#]|$)/i.exec(url);\n\
         \x20 if (!parts) return \"DIRECT\";\n\
         \x20 var scheme = parts[1].toLowerCase();\n\
         \x20 var tunnel = scheme == \"https\" || scheme == \"wss\" || scheme == \"ws\";\n\
         \x20 var port = parts[2] ? Number(parts[2]) : (scheme == \"https\" || scheme == \"wss\" ? 443 : 80);\n\
         \x20 if (scheme != \"http\" && !(tunnel && [{}].indexOf(port) >= 0)) return \"DIRECT\";\n\
         \x20 return \"PROXY {proxy}; DIRECT\";\n}}\n",
        ports.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_where_he_was_found() {
        let any = "0.0.0.0:8080".parse().unwrap();
        assert_eq!(seen_as("10.0.0.1:80".parse().unwrap(), Some("other")), "10.0.0.1:80");
        assert_eq!(seen_as(any, Some("proxy.lan:8083")), "proxy.lan:8080");
        assert_eq!(seen_as(any, Some("a\"b")), "localhost:8080");
        assert_eq!(seen_as(any, None), "localhost:8080");
    }

    #[test]
    fn the_script_names_the_proxy_and_its_ports() {
        let script = text("proxy.lan:8080", &[443, 8443], false);
        assert!(
            script.contains("[443, 8443].indexOf(port)")
                && script.contains("\"PROXY proxy.lan:8080; DIRECT\"")
        );
        assert!(script.contains("isPlainHostName") && !text("a:1", &[], true).contains("isPlainHostName"));
        assert_eq!(script.matches('{').count(), script.matches('}').count());
    }
}

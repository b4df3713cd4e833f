//! The forward proxy: requests for hosts that are not ours, by clients who may.
//!
//! A request in absolute form is for it when no route names its host; CONNECT always is. Where it may lead is decided by
//! address and not by name, after the name is resolved: a name that leads to a private address is as good as that address.

use crate::body::{Body, Upload};
use crate::forward::{self, Failure, Way};
use crate::pool::{self, To};
use crate::proxy::{Asked, Client, Proxy};
use crate::resolve;
use crate::route::{RouteConfig, Target, Timeouts};
use crate::router;
use crate::rt::Io;
use crate::stats::Outcome;
use crate::tunnel::Far;
use crate::upstream::{self, Failed};
use engine::net::Stream;
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode};
use ipnet::IpNet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How the forward proxy's requests are named among the routes; no host can be this.
pub const NAME: &str = "(forward)";

/// Who may go where.
#[derive(Debug, Clone, Default)]
pub struct OutwardConfig {
    /// Clients who may use it.
    pub clients: Vec<IpNet>,
    /// Ports that CONNECT may lead to.
    pub connect_ports: Vec<u16>,
    /// Addresses that are not public may be asked for.
    pub private: bool,
    /// As for origins.
    pub timeouts: Timeouts,
}

impl OutwardConfig {
    /// Stands behind all other routes; no request finds it by its host.
    pub(crate) fn route(&self) -> RouteConfig {
        RouteConfig {
            host: NAME.to_owned(),
            target: Target::Outward,
            timeouts: self.timeouts,
            ..RouteConfig::default()
        }
    }
}

/// Is this request for the forward proxy? `host`: its host without a port, in lower case.
pub(crate) fn is_outward<B>(request: &Request<B>, routes: &[RouteConfig], host: &str) -> bool {
    *request.method() == Method::CONNECT
        || (request.uri().authority().is_some() && !router::names(routes, host))
}

/// May this client's request go outward at all?
///
/// # Errors
/// Why not.
pub(crate) fn allowed<B>(
    config: &OutwardConfig,
    client: &Client,
    request: &Request<B>,
) -> Result<(), Failed> {
    let ip = client.addr.map(|ip| ip.to_canonical());
    if !ip.is_some_and(|ip| config.clients.iter().any(|net| net.contains(&ip))) {
        return Err(Failed::new(StatusCode::FORBIDDEN, "this client may not use the forward proxy"));
    }
    if *request.method() == Method::CONNECT {
        return match request.uri().port_u16() {
            None => Err(Failed::new(StatusCode::BAD_REQUEST, "CONNECT names a host and a port")),
            Some(p) if config.connect_ports.contains(&p) => Ok(()),
            Some(p) => Err(Failed::new(StatusCode::FORBIDDEN, format!("port {p} is not for CONNECT"))),
        };
    }
    match request.uri().scheme_str() {
        Some("http") => Ok(()),
        _ => Err(Failed::new(StatusCode::BAD_REQUEST, "only http is asked for in absolute form")),
    }
}

impl Proxy {
    /// Leads the client's connection to the host and port it has named.
    pub(crate) async fn connect<B>(
        &self,
        config: &OutwardConfig,
        client: &Client,
        request: &Request<B>,
    ) -> Result<Response<Body>, Failed> {
        let authority = request.uri().authority();
        let authority = authority.ok_or_else(|| Failed::new(StatusCode::BAD_REQUEST, "no host"))?;
        let stream = reach(config, authority).await?;
        let Some(io) = client.io.io() else {
            return Err(Failed::new(StatusCode::BAD_GATEWAY, "the client has gone"));
        };
        let (idle, early) = (config.timeouts.tunnel, bytes::Bytes::new());
        io.lead_to(Far { io: Io::new(stream), early, idle, busy: None });
        Ok(Response::new(Body::Empty))
    }

    /// Sends a prepared request to the host it names.
    pub(crate) async fn send_outward(
        &self,
        config: &OutwardConfig,
        asked: &Asked,
        mut request: Request<Body>,
        upload: &Upload,
        way: Way<'_>,
    ) -> Result<Response<Body>, Failed> {
        let bad = |why: &str| Failed::new(StatusCode::BAD_REQUEST, why);
        let host = asked.host.as_ref().and_then(|h| Authority::try_from(h.as_bytes()).ok());
        let host = host.ok_or_else(|| bad("the target names no host"))?;
        let target =
            forward::target(request.uri(), "", "").ok_or_else(|| bad("the path can't be passed on"))?;
        *request.uri_mut() = target;
        let failed = |e: Failure| {
            let failed = Failed { status: e.status, why: e.why, outcome: e.outcome };
            upstream::clients_fault(upload.fate()).unwrap_or(failed)
        };
        // where it leads was looked at when it was made
        let to = To::Host(host.as_str().to_ascii_lowercase().into());
        if let Some(lease) = pool::reuse(&to).await {
            match forward::attempt(lease, request, way).await {
                Err(Failure { status: StatusCode::BAD_GATEWAY, again: Some(back), .. }) => request = *back,
                done => return done.map_err(failed),
            }
        }
        let io = Io::new(reach(config, &host).await?);
        let lease = pool::adopt(to, io).await.map_err(|e| failed(forward::unreachable(&e, None)))?;
        forward::attempt(lease, request, way).await.map_err(failed)
    }
}

/// A connection to where it may lead.
async fn reach(config: &OutwardConfig, to: &Authority) -> Result<Stream, Failed> {
    let (name, port) = (to.host().trim_matches(['[', ']']), to.port_u16().unwrap_or(80));
    let limit = config.timeouts.connect;
    let work = async {
        let all = resolve::addresses(name, port).await?;
        let list: Vec<SocketAddr> =
            all.iter().copied().filter(|a| config.private || is_public(a.ip())).collect();
        match list.is_empty() {
            true => Ok(None),
            false => pool::any_of(&list, limit).await.map(Some),
        }
    };
    let done = engine::time::timeout(limit, work).await;
    match done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(Some(stream)) => Ok(stream),
        Ok(None) => {
            let why = format!("{name} has no public address");
            Err(Failed { outcome: Outcome::Refused, ..Failed::new(StatusCode::FORBIDDEN, why) })
        }
        Err(e) => {
            let e = forward::unreachable(&e, None);
            Err(Failed { status: e.status, why: e.why, outcome: e.outcome })
        }
    }
}

/// Is it an address that everybody on the Internet means the same host by?
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || matches!((a, b, c), (0 | 240.., _, _) | (100, 64..=127, _) | (192, 0, 0) | (198, 18 | 19, _));
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    // those that carry an IPv4 address lead where that leads: NAT64, and 6to4
    let inner = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => is_public_v4(inner(high, low)),
        // global unicast, without documentation and Teredo
        [0x2001, 0xdb8 | 0, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses() {
        for good in ["1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "64:ff9b::1.1.1.1"] {
            assert!(is_public(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "2001:db8::1",
        ] {
            assert!(!is_public(bad.parse().unwrap()), "{bad}");
        }
    }
}

//! The configuration as the proxy takes it.

use crate::config::{self, Config};
use crate::exit::Exit;
use crate::logging::Fatal;
use anyhow::Context;
use http::StatusCode;
use proxy::access::{AccessConfig, Format};
use proxy::cache::policy::Rules;
use proxy::cache::target::Query;
use proxy::edit::Edits;
use proxy::outward::OutwardConfig;
use proxy::probes::Check;
use proxy::route::{Balance, Caching, Health, HostHeader, MaxBody, Timeouts};
use proxy::serve::Limits;
use proxy::{CacheConfig, OriginConfig, ProxyConfig, RouteConfig, Target};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// All of it. `token` opens the heartbeat.
///
/// # Errors
/// What the configuration's own checks have let through.
pub fn proxy_config(config: &Config, token: String) -> anyhow::Result<ProxyConfig> {
    // differs from suite to suite, and tells nothing about the token
    let mut hash = DefaultHasher::new();
    token.hash(&mut hash);
    let routes = config.routes.iter().map(route_config).collect::<anyhow::Result<_>>()?;
    let server = &config.server;
    let disk = (server.cache_disk > 0).then(|| (server.cache_dir(&config.suite), server.cache_disk));
    Ok(ProxyConfig {
        name: format!("traffic-{:08x}", hash.finish() as u32),
        routes,
        heartbeat_token: token,
        limits: Limits { idle_timeout: config.server.idle_timeout, ..Limits::default() },
        cache: CacheConfig { memory: server.cache_memory, disk, ..CacheConfig::default() },
        purge_from: server.cache_purge.clone(),
        outward: outward_config(config),
        access: access_config(config),
        slow: (!server.slow_log.is_zero()).then_some(server.slow_log),
    })
}

fn outward_config(config: &Config) -> Option<OutwardConfig> {
    let s = &config.server;
    (!s.forward_clients.is_empty()).then(|| OutwardConfig {
        clients: s.forward_clients.clone(),
        connect_ports: s.forward_connect_ports.clone(),
        private: s.forward_private,
        timeouts: Timeouts { tunnel: s.forward_tunnel_timeout, ..Timeouts::default() },
    })
}

/// A lifetime; none if it is zero.
fn seconds(d: Duration) -> Option<u64> {
    (!d.is_zero()).then(|| d.as_secs().max(1))
}

fn access_config(config: &Config) -> Option<AccessConfig> {
    let format = match config.server.access_log {
        config::AccessLog::Off => return None,
        config::AccessLog::Common => Format::Common,
        config::AccessLog::Combined => Format::Combined,
        config::AccessLog::Json => Format::Json,
    };
    Some(AccessConfig { format, path: config.server.access_log_path(&config.suite) })
}

fn route_config(r: &config::Route) -> anyhow::Result<RouteConfig> {
    let origin = |o: &config::Origin| OriginConfig {
        host: o.host.clone(),
        port: o.port,
        path_prefix: o.path_prefix.clone(),
    };
    let status = |n: u16| StatusCode::from_u16(n).context("a status");
    let target = if let Some(root) = &r.files {
        Target::Files(root.clone())
    } else if let Some(n) = r.respond {
        Target::Fixed { status: status(n)?, body: r.respond_body.clone().into() }
    } else if let Some(to) = &r.redirect {
        Target::Redirect { status: status(r.redirect_status)?, to: to.clone() }
    } else {
        let balance = match r.balance {
            config::Balance::RoundRobin => Balance::RoundRobin,
            config::Balance::LeastConnections => Balance::LeastConnections,
        };
        Target::Origins { list: r.origins.iter().map(origin).collect(), balance }
    };
    let edits = |c: &config::Changes| Edits::new(&c.remove, &c.set).map_err(|e| Fatal::new(Exit::Config, e));
    Ok(RouteConfig {
        host: r.host.clone(),
        prefix: r.prefix.clone(),
        target,
        strip_prefix: r.strip_prefix,
        host_header: match r.host_header.as_str() {
            "keep" => HostHeader::Keep,
            "origin" => HostHeader::Origin,
            name => HostHeader::Fixed(name.parse().context("route.host_header")?),
        },
        request_headers: edits(&r.request_headers)?,
        response_headers: edits(&r.response_headers)?,
        timeouts: Timeouts {
            connect: r.connect_timeout,
            first_byte: r.first_byte_timeout,
            between: r.read_timeout,
            total: (!r.total_timeout.is_zero()).then_some(r.total_timeout),
            tunnel: r.tunnel_timeout,
        },
        max_body: MaxBody(r.max_body),
        health: Health { failures: r.max_failures, eject: r.eject_time },
        cache: if r.cache { Caching::Standard } else { Caching::Off },
        rules: Rules {
            ttl: seconds(r.cache_ttl),
            default_ttl: seconds(r.cache_default_ttl),
            negative_ttl: seconds(r.cache_negative_ttl),
        },
        query: match &r.cache_query {
            Some(names) => Query::Only(names.clone()),
            None if r.cache_ignore_query.is_empty() => Query::All,
            None => Query::Without(r.cache_ignore_query.clone()),
        },
        check: r.health_check.clone().map(|path| Check { path, interval: r.health_interval }),
        upgrade: r.upgrade.clone(),
    })
}

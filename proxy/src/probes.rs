//! Active health checks: origins are asked regularly, whether anybody else asks them or not.
//!
//! Some checks in a row that fail leave an origin out, whatever it answers to requests meanwhile; one that is good brings it back
//! (see [`crate::origins`]). An origin that is the only one of its route is never left out.

use crate::body::Body;
use crate::cache::fill;
use crate::pool;
use crate::proxy::Proxy;
use crate::route::{HostHeader, OriginConfig, Target};
use crate::upstream::host_of;
use engine::{GroupId, Handle};
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode};
use std::sync::Arc;
use std::time::Duration;

/// How a route's origins are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is asked for: any 2xx or 3xx is good.
    pub path: String,
    /// Between two checks; also the longest that one may take.
    pub interval: Duration,
}

/// Starts the checks of all routes that want them, on threads of that group. They end when the engine drains.
pub fn start(proxy: &Arc<Proxy>, handle: &Handle, group: GroupId) {
    for (route, config) in proxy.config.routes.iter().enumerate() {
        let (Some(check), Target::Origins { list, .. }) = (&config.check, &config.target) else { continue };
        for i in 0..list.len() {
            let (proxy, check) = (proxy.clone(), check.clone());
            // evenly over the interval, so that a route's origins aren't all asked at once
            let first = check.interval * i as u32 / list.len() as u32;
            handle.spawn_on(group, move || async move {
                fill::unless_draining(go_on(proxy, route, i, check, first)).await;
            });
        }
    }
}

async fn go_on(proxy: Arc<Proxy>, route: usize, i: usize, check: Check, first: Duration) {
    engine::time::sleep(first).await;
    let Target::Origins { list, .. } = &proxy.config.routes[route].target else { return };
    let (origin, origins) = (&list[i], &proxy.upstreams[route].origins);
    // as requests name it, where that isn't for clients to say
    let host = match &proxy.config.routes[route].host_header {
        HostHeader::Fixed(host) => Some(host.clone()),
        _ => HeaderValue::from_str(&host_of(origin)).ok(),
    };
    let Some(host) = &host else { return };
    let mut was = true;
    loop {
        let begun = engine::time::now();
        let met = match engine::time::timeout(check.interval, ask(origin, host, &check)).await {
            Ok(met) => met,
            Err(_) => Err(format!("no answer within {:?}", check.interval)),
        };
        match &met {
            Ok(()) => origins.fit(i),
            Err(_) => origins.unfit(i),
        }
        if met.is_ok() != was {
            was = met.is_ok();
            let why = met.err().unwrap_or_default();
            log::info!("event=origin-checked origin={}:{} good={was} {why}", origin.host, origin.port);
        }
        engine::time::sleep(check.interval.saturating_sub(begun.elapsed())).await;
    }
}

/// One check, on a connection of its own.
async fn ask(origin: &OriginConfig, host: &HeaderValue, check: &Check) -> Result<(), String> {
    let stream = pool::stream(origin, check.interval).await.map_err(|e| e.to_string())?;
    let (mut sender, conn) = pool::handshake(stream).await.map_err(|e| e.to_string())?;
    drop(engine::spawn(conn));
    let request = Request::get(format!("{}{}", origin.path_prefix, check.path))
        .header(HOST, host)
        .header(USER_AGENT, "traffic_server health check")
        .body(Body::Empty)
        .map_err(|e| e.to_string())?;
    match sender.send_request(request).await {
        Ok(r) if r.status().is_success() || r.status().is_redirection() => Ok(()),
        Ok(r) => Err(said(r.status())),
        Err(e) => Err(e.to_string()),
    }
}

fn said(status: StatusCode) -> String {
    format!("it says {}", status.as_u16())
}

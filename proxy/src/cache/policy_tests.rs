//! The rules by example, and beside those of an independent implementation.

use super::*;
use http::header::HeaderValue;
use std::time::{Duration, UNIX_EPOCH};

fn map(list: &[(&str, &str)]) -> HeaderMap {
    let mut h = HeaderMap::new();
    for (k, v) in list {
        h.append(k.parse::<http::HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap());
    }
    h
}

/// Some day, and a date of that very second.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn at(offset: i64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs((1_700_000_000 + offset) as u64))
}

fn lifetime(status: u16, list: &[(&str, &str)]) -> Result<u64, Refusal> {
    let status = StatusCode::from_u16(status).unwrap();
    judge(&Method::GET, &HeaderMap::new(), status, &map(list), now(), Rules::default()).map(|f| f.lifetime)
}

#[test]
fn lifetimes_in_their_order() {
    let (day_ago, later, earlier, date) = (at(-86_400), at(100), at(-100), at(0));
    for (list, want) in [
        (vec![("cache-control", "max-age=60")], Ok(60)),
        (vec![("cache-control", "max-age=60, s-maxage=30")], Ok(30)),
        (vec![("cache-control", "max-age=60"), ("expires", &later)], Ok(60)),
        (vec![("expires", &later), ("date", &date)], Ok(100)),
        (vec![("expires", &later)], Ok(100)),
        (vec![("expires", &earlier), ("etag", "\"x\"")], Ok(0)),
        (vec![("expires", "0"), ("etag", "\"x\"")], Ok(0)),
        (vec![("expires", "0")], Err(Refusal::Useless)),
        (vec![("last-modified", &day_ago), ("date", &date)], Ok(8640)),
        (vec![("last-modified", &at(-100 * 86_400)), ("date", &date)], Ok(86_400)),
        (vec![("etag", "\"x\"")], Ok(0)),
        (vec![], Err(Refusal::Useless)),
        (vec![("cache-control", "no-store, max-age=60")], Err(Refusal::Answer)),
        (vec![("cache-control", "no-store, must-understand, max-age=60")], Ok(60)),
        (vec![("cache-control", "private, max-age=60")], Err(Refusal::Answer)),
        (vec![("cache-control", "max-age=60"), ("vary", "a, *")], Err(Refusal::Answer)),
        // it means nothing in a 200
        (vec![("cache-control", "max-age=60"), ("content-range", "bytes 0-1/2")], Ok(60)),
        (vec![("cdn-cache-control", "max-age=5"), ("cache-control", "no-store")], Ok(5)),
        (vec![("last-modified", &day_ago), ("set-cookie", "a=b")], Err(Refusal::Answer)),
        (vec![("cache-control", "max-age=60"), ("set-cookie", "a=b")], Ok(60)),
    ] {
        assert_eq!(lifetime(200, &list), want, "{list:?}");
    }
}

#[test]
fn statuses() {
    let old = at(-1000);
    for (status, heuristic, explicit) in
        [(404, true, true), (301, true, true), (302, false, true), (500, false, true), (599, false, true)]
    {
        assert_eq!(lifetime(status, &[("last-modified", &old)]).is_ok(), heuristic, "{status}");
        assert_eq!(lifetime(status, &[("cache-control", "max-age=9")]).is_ok(), explicit, "{status}");
    }
    for never in [206, 304] {
        assert!(lifetime(never, &[("cache-control", "max-age=9")]).is_err());
    }
    assert!(lifetime(599, &[("cache-control", "max-age=9, must-understand")]).is_err());
}

#[test]
fn requests_that_forbid_or_hinder_keeping() {
    let j = |method: Method, request: &[(&str, &str)], cc: &str| {
        judge(&method, &map(request), StatusCode::OK, &map(&[("cache-control", cc)]), now(), Rules::default())
            .is_ok()
    };
    assert!(!j(Method::POST, &[], "max-age=60"));
    assert!(!j(Method::HEAD, &[], "max-age=60"));
    assert!(!j(Method::GET, &[("cache-control", "no-store")], "max-age=60"));
    let auth = [("authorization", "x")];
    assert!(!j(Method::GET, &auth, "max-age=60"));
    for allowed in ["max-age=60, public", "s-maxage=60", "max-age=60, must-revalidate"] {
        assert!(j(Method::GET, &auth, allowed), "{allowed}");
    }
}

#[test]
fn ages() {
    let age = |list: &[(&str, &str)], delay| initial_age(&map(list), delay, now());
    let (past, future) = (at(-30), at(30));
    assert_eq!(age(&[], 0), 0);
    assert_eq!(age(&[("age", "10")], 2), 12);
    assert_eq!(age(&[("age", "10, 50")], 0), 10);
    assert_eq!(age(&[("age", "-1")], 0), 0);
    assert_eq!(age(&[("age", "x")], 3), 3);
    assert_eq!(age(&[("date", &past)], 0), 30);
    assert_eq!(age(&[("date", &past), ("age", "40")], 0), 40);
    assert_eq!(age(&[("date", &future)], 0), 0);
    assert_eq!(age(&[("age", "99999999999999999999999")], 0), 1 << 31);
}

fn fresh(lifetime: u64) -> Freshness {
    Freshness { lifetime, ..Freshness::MINUTE }
}

#[test]
fn decisions() {
    use Decision::*;
    let d = |cc: &str, f: Freshness, age: u64| {
        decide(&Directives::of_request(&map(&[("cache-control", cc)])), &f, age)
    };
    let ask = Ask { forced: false };
    assert_eq!(d("", fresh(60), 59), Use);
    assert_eq!(d("", fresh(60), 60), ask);
    assert_eq!(d("no-cache", fresh(60), 0), Ask { forced: true });
    assert_eq!(d("max-age=10", fresh(60), 10), Use);
    assert_eq!(d("max-age=10", fresh(60), 11), Ask { forced: true });
    assert_eq!(d("min-fresh=10", fresh(60), 50), Use);
    assert_eq!(d("min-fresh=10", fresh(60), 51), Ask { forced: true });
    assert_eq!(d("max-stale=10", fresh(60), 65), Use);
    assert_eq!(d("max-stale", fresh(60), 6500), Use);
    assert_eq!(d("max-stale=10", fresh(60), 75), ask);
    assert_eq!(d("max-stale", Freshness { strict: true, ..fresh(60) }, 65), ask);
    let swr = Freshness { stale_while_revalidate: 10, ..fresh(60) };
    assert_eq!([d("", swr, 65), d("", swr, 80)], [UseAndRefresh, ask]);
    assert_eq!(d("", Freshness { strict: true, ..swr }, 65), ask);
    assert_eq!(d("", Freshness { ask_always: true, ..fresh(60) }, 0), ask);
}

#[test]
fn errors() {
    let e = |f: Freshness, age, reached| use_on_error(&Directives::default(), &f, age, reached);
    let sie = Freshness { stale_if_error: Some(10), ..fresh(60) };
    assert!(e(sie, 65, true) && e(sie, 65, false) && !e(sie, 80, true) && !e(sie, 80, false));
    assert!(!e(fresh(60), 65, true) && e(fresh(60), 65, false));
    assert!(!e(Freshness { strict: true, ..sie }, 65, false));
    assert!(!e(Freshness { ask_always: true, ..sie }, 65, false));
}

/// http-cache-semantics is of RFC 7234 and can't do all of this; where it speaks of the same, it must say the same.
#[test]
fn another_implementation_agrees() {
    use http_cache_semantics::{BeforeRequest, CacheOptions, CachePolicy};
    let (date, old, later, earlier) = (at(0), at(-1000), at(100), at(-100));
    let controls = [
        "",
        "max-age=60",
        "max-age=0",
        "s-maxage=30",
        "max-age=60, s-maxage=5",
        "no-store",
        "no-cache",
        "private",
        "public, max-age=60",
        "must-revalidate, max-age=60",
        "public",
    ];
    let expires = [None, Some(&later), Some(&earlier)];
    let mut compared = 0;
    for status in [200, 203, 302, 404, 410, 301, 204] {
        for control in controls {
            for expires in expires {
                for modified in [false, true] {
                    for auth in [false, true] {
                        let mut list = vec![("date", date.as_str())];
                        if !control.is_empty() {
                            list.push(("cache-control", control));
                        }
                        if let Some(e) = expires {
                            list.push(("expires", e));
                        }
                        if modified {
                            list.push(("last-modified", old.as_str()));
                        }
                        let fields = map(if auth { &[("authorization", "x")] } else { &[] });
                        let mut request = http::Request::new(());
                        *request.headers_mut() = fields.clone();
                        let mut answer = http::Response::new(());
                        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
                        *answer.headers_mut() = map(&list);
                        let theirs =
                            CachePolicy::new_options(&request, &answer, now(), CacheOptions::default());
                        let ours = judge(
                            &Method::GET,
                            &fields,
                            answer.status(),
                            answer.headers(),
                            now(),
                            Rules::default(),
                        );
                        for age in [0, 4, 20, 59, 99, 101, 10_000] {
                            let use_ours =
                                ours.is_ok_and(|f| decide(&Directives::default(), &f, age) == Decision::Use);
                            let then = now() + Duration::from_secs(age);
                            let use_theirs = theirs.is_storable()
                                && matches!(theirs.before_request(&request, then), BeforeRequest::Fresh(_));
                            compared += 1;
                            assert_eq!(use_ours, use_theirs, "{status} {list:?} auth={auth} age={age}");
                        }
                    }
                }
            }
        }
    }
    assert!(compared > 5000);
}

#[test]
fn an_operator_knows_better() {
    let by = |status: u16, list: &[(&str, &str)], rules: Rules| {
        let status = StatusCode::from_u16(status).unwrap();
        judge(&Method::GET, &HeaderMap::new(), status, &map(list), now(), rules).map(|f| f.lifetime)
    };
    let ttl = Rules { ttl: Some(7), ..Rules::default() };
    let default = Rules { default_ttl: Some(7), ..Rules::default() };
    let negative = Rules { negative_ttl: Some(7), ..Rules::default() };
    let old = at(-1000);
    for (status, list, rules, want) in [
        (200, vec![("cache-control", "max-age=60")], ttl, Ok(7)),
        (200, vec![], ttl, Ok(7)),
        (200, vec![("cache-control", "no-store")], ttl, Err(Refusal::Answer)),
        (200, vec![("cache-control", "private")], ttl, Err(Refusal::Answer)),
        (500, vec![], ttl, Err(Refusal::Answer)),
        (200, vec![], default, Ok(7)),
        (200, vec![("last-modified", &old)], default, Ok(7)),
        (200, vec![("cache-control", "max-age=60")], default, Ok(60)),
        (200, vec![("set-cookie", "a=b")], default, Err(Refusal::Answer)),
        (404, vec![], default, Err(Refusal::Useless)),
        (404, vec![], negative, Ok(7)),
        (503, vec![], negative, Ok(7)),
        (503, vec![("cache-control", "max-age=1")], negative, Ok(1)),
        (503, vec![("cache-control", "no-store")], negative, Err(Refusal::Answer)),
        (200, vec![], negative, Err(Refusal::Useless)),
    ] {
        assert_eq!(by(status, &list, rules), want, "{status} {list:?} {rules:?}");
    }
}

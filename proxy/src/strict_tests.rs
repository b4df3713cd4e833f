//! The scanner, with every input cut at every place.

use super::*;

/// Feeds `text` cut in two at every place, and byte by byte; all ways must agree.
fn scan(text: &str) -> (Option<Finding>, bool) {
    let mut results = Vec::new();
    for cut in 0..=text.len() {
        let mut bytes = text.as_bytes().to_vec();
        let mut s = Scanner::default();
        let (a, b) = bytes.split_at_mut(cut);
        s.feed(a);
        s.feed(b);
        results.push((s.finding(), s.between_requests(), bytes));
    }
    let mut bytes = text.as_bytes().to_vec();
    let mut s = Scanner::default();
    bytes.iter_mut().for_each(|b| s.feed(std::slice::from_mut(b)));
    results.push((s.finding(), s.between_requests(), bytes));
    let first = results[0].clone();
    for (n, r) in results.iter().enumerate() {
        assert_eq!((r.0, r.1), (first.0, first.1), "cut {n} of {text:?}");
        let poisoned = r.2.iter().zip(text.as_bytes()).filter(|(a, b)| a != b).count();
        let at_most = usize::from(r.0.is_some());
        assert!(
            poisoned == at_most || (poisoned == 0 && r.0 == Some(Finding::BadChunk)),
            "cut {n} of {text:?}"
        );
    }
    (first.0, first.1)
}

#[test]
fn honest_requests_pass_and_the_scanner_knows_where_they_end() {
    for text in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na\nb\rcGET / HTTP/1.1\r\nHost: b\r\n\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n5\r\na\nb\rc\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1A ;x=\"y\"\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nX: y\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length-X: a\r\nX-Transfer-Encoding: b\r\n\r\n",
    ] {
        assert_eq!(scan(text), (None, true), "{text:?}");
    }
    assert_eq!(scan("GET / HTTP/1.1\r\nHo"), (None, false));
    assert_eq!(scan("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab"), (None, false));
}

#[test]
fn what_can_be_read_in_two_ways_is_poisoned() {
    use Finding::*;
    for (fields, why) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", TwoLengths),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", TwoLengths),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", TwoLengths),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", BadCoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", TwoLengths),
        ("Content-Length: 5, 5\r\n", BadLength),
        ("Content-Length: +5\r\n", BadLength),
        ("Content-Length: 0x5\r\n", BadLength),
        ("Content-Length:\r\n", BadLength),
        ("Content-Length : 5\r\n", BadLength),
        ("Content-Length: 99999999999999999999\r\n", BadLength),
        ("Transfer-Encoding: gzip, chunked\r\n", BadCoding),
        ("Transfer-Encoding: xchunked\r\n", BadCoding),
        ("Transfer-Encoding: \"chunked\"\r\n", BadCoding),
        ("Transfer-Encoding: chunked\x0c\r\n", BadCoding),
        ("Content-Length: 5\x0c\r\n", BadLength),
        // what lies beyond what is kept of a line
        (&format!("Transfer-Encoding: chunked{:300}x\r\n", ""), BadCoding),
        (&format!("Transfer-Encoding: chunked{:300}\r\n", ""), BadCoding),
        (&format!("Content-Length: 5{:300}x\r\n", ""), BadLength),
        ("Host: a\nX: y\r\n", BareLf),
        ("Host: a\rX: y\r\n", BareCr),
        ("Host: a\r\r\n", BareCr),
    ] {
        let text = format!("POST / HTTP/1.1\r\n{fields}\r\nabcde");
        assert_eq!(scan(&text).0, Some(why), "{text:?}");
    }
    assert_eq!(scan("GET / HTTP/1.1\nHost: a\n\n").0, Some(BareLf));
    for chunks in
        ["x\r\n", ";\r\n", "\r\n", "5\n", "5x\r\n", "11111111111111111\r\n", "5;a\nb\r\n", "-1\r\n", " 5\r\n"]
    {
        let text = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(scan(&text).0, Some(BadChunk), "{chunks:?}");
    }
    let text = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\nZ: a\r\n\r\n";
    assert_eq!(scan(text).0, Some(BareLf));
}

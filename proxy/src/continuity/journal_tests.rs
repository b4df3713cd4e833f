//! Journal, table and resumption together: what one writes, the other reads, at every step and from any bytes.

use super::*;
use crate::continuity::Continuity;
use crate::continuity::table::Size;
use policy::handover::{Facts, Reason};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

const FD: RawFd = 7;
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";

fn pair() -> (Arc<Table>, Arc<Buffers>) {
    let size = Size { slots: 16, buffers: 4 };
    (Arc::new(Table::create(size).unwrap()), Arc::new(Buffers::new(size.buffers)))
}

/// A journal with what the kernel would say of its connection.
struct Conn {
    table: Arc<Table>,
    journal: Journal,
    bytes_in: u64,
    bytes_out: u64,
}

impl Conn {
    fn new() -> Conn {
        let (table, buffers) = pair();
        let journal = Journal::new(&table, &buffers, FD, 0, 0);
        Conn { table, journal, bytes_in: 0, bytes_out: 0 }
    }

    fn read(&mut self, bytes: &[u8]) {
        let mut to = [MaybeUninit::uninit(); 32 << 10];
        let got = self.journal.read(&mut to, |room| {
            let n = bytes.len().min(room.len());
            for (r, b) in room.iter_mut().zip(bytes) {
                r.write(*b);
            }
            Poll::Ready(Ok(n))
        });
        let Poll::Ready(Ok(n)) = got else { panic!() };
        self.bytes_in += n as u64;
        if n < bytes.len() {
            self.read(&bytes[n..]);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        assert_eq!(self.journal.begin_write(bytes), Write::All);
        self.journal.wrote(bytes.len());
        self.bytes_out += bytes.len() as u64;
    }

    /// What a next server would do now.
    fn resume(&self) -> Result<Resume, Reason> {
        self.resume_if(self.bytes_in, self.bytes_out)
    }

    fn resume_if(&self, bytes_in: u64, bytes_out: u64) -> Result<Resume, Reason> {
        let kernel = Facts { bytes_in: Some(bytes_in), bytes_out: Some(bytes_out), closed: false };
        // through the fd, as another process would see it
        let table = Table::open(self.table.as_fd().try_clone_to_owned().unwrap()).unwrap();
        crate::continuity::resume::resume(&table, FD, &kernel).unwrap()
    }
}

#[test]
fn a_whole_request_and_its_answer() {
    let mut c = Conn::new();
    assert_eq!(c.resume().unwrap(), Resume::default());
    c.read(&GET[..10]);
    let r = c.resume().unwrap();
    assert_eq!((r.bytes.as_slice(), r.bytes_in, r.what), (&GET[..10], 10, What::GoOn));
    c.read(&GET[10..]);
    let mark = c.journal.request(true, Some(0));
    let r = c.resume().unwrap();
    assert_eq!((r.bytes.as_slice(), r.what), (GET, What::Replay { attempts: 1 }));
    mark.set();
    assert_eq!(c.resume().unwrap().what, What::Replay { attempts: 1 });
    c.journal.answer(Answer { body_len: Some(5), validator: 9 });
    c.write(HEAD);
    let What::Continue { rest, .. } = c.resume().unwrap().what else { panic!() };
    assert_eq!((rest.head_len as usize, rest.body_sent, rest.body_len), (HEAD.len(), 0, 5));
    c.write(b"12");
    let What::Continue { rest, .. } = c.resume().unwrap().what else { panic!() };
    assert_eq!(rest.body_sent, 2);
    // the kernel took the rest, and the record doesn't say so yet
    let r = c.resume_if(c.bytes_in, c.bytes_out + 3).unwrap();
    assert_eq!((r.bytes.as_slice(), r.what), (&b""[..], What::GoOn));
    c.write(b"345");
    assert!(c.journal.is_idle());
    let r = c.resume().unwrap();
    assert_eq!((r.bytes.len(), r.bytes_in, r.bytes_out), (0, c.bytes_in, c.bytes_out));
}

#[test]
fn a_post_is_doubtful_from_the_mark_on() {
    let mut c = Conn::new();
    c.read(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab");
    let mark = c.journal.request(false, Some(3));
    assert_eq!(c.resume().unwrap().what, What::Replay { attempts: 1 });
    mark.set();
    assert_eq!(c.resume().unwrap().what, What::BadGateway { suspect: false });
    c.read(b"c");
    c.journal.answer(Answer { body_len: Some(5), validator: 0 });
    c.write(HEAD);
    assert_eq!(c.resume(), Err(Reason::AnswerCut));
    c.write(b"12345");
    assert!(c.journal.is_idle());
}

#[test]
fn pipelined_and_chunked_requests_end_where_they_end() {
    let mut c = Conn::new();
    let chunked = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    c.read(&[&chunked[..], GET, &GET[..7]].concat());
    c.journal.request(false, None);
    c.journal.answer(Answer { body_len: Some(5), validator: 0 });
    c.write(&[HEAD, b"12345"].concat());
    assert_eq!(c.resume().unwrap().bytes, [GET, &GET[..7]].concat());
    c.journal.request(true, Some(0));
    c.journal.answer(Answer { body_len: None, validator: 0 });
    c.write(HEAD);
    assert_eq!(c.resume(), Err(Reason::AnswerCut), "of unknown length");
    c.journal.body_ended();
    c.journal.flushed();
    assert_eq!(c.resume().unwrap().bytes, &GET[..7]);
}

#[test]
fn what_is_beyond_the_buffer_is_not_repeated() {
    let mut c = Conn::new();
    c.read(b"POST / HTTP/1.1\r\nContent-Length: 40000\r\n\r\n");
    c.journal.request(false, Some(40_000));
    c.read(&[b'x'; 40_000]);
    assert_eq!(c.resume().unwrap().what, What::BadGateway { suspect: false });
    c.journal.answer(Answer { body_len: Some(5), validator: 0 });
    c.write(&[HEAD, b"12345"].concat());
    // all of it was read, so it is clear where the next one begins
    assert!(c.journal.is_idle());
    assert_eq!(c.resume().unwrap().what, What::GoOn);
    // and a hundred requests in a row find their way round the buffer
    for _ in 0..2000 {
        c.read(&[GET, &GET[..5]].concat());
        c.journal.request(true, Some(0));
        c.journal.answer(Answer { body_len: Some(5), validator: 0 });
        c.write(&[HEAD, b"12345"].concat());
        c.read(&GET[5..]);
        c.journal.request(true, Some(0));
        c.journal.answer(Answer { body_len: Some(5), validator: 0 });
        c.write(&[HEAD, b"12345"].concat());
    }
    assert!(c.journal.is_idle());
    assert_eq!(c.resume().unwrap().bytes_in, c.bytes_in);
}

#[test]
fn a_resumed_answer_leaves_out_what_is_out() {
    let mut c = Conn::new();
    c.read(GET);
    c.journal.request(true, Some(0));
    c.journal.answer(Answer { body_len: Some(5), validator: 9 });
    c.write(HEAD);
    c.write(b"12");
    let next = Continuity::new(Size { slots: 16, buffers: 4 }).unwrap();
    let kernel = Facts { bytes_in: Some(c.bytes_in), bytes_out: Some(c.bytes_out), closed: false };
    next.inherit(&c.table, FD, 9, &kernel).unwrap().unwrap();
    // dead again before it has begun: still the rest of that answer, in its second crash cut
    let again = crate::continuity::resume::resume(next.table(), 9, &kernel).unwrap();
    assert_eq!(again, Err(Reason::AnswerCut));
    let (j, resume) = next.begin(9);
    assert_eq!(resume.unwrap().bytes, GET);
    j.request(true, Some(0));
    j.answer(Answer { body_len: Some(5), validator: 9 });
    let longer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nAge: 1\r\n\r\n";
    let again = || crate::continuity::resume::resume(next.table(), 9, &kernel).unwrap();
    j.stuck();
    assert_eq!(again(), Err(Reason::AnswerCut), "nothing of it has been seen yet");
    assert_eq!(j.begin_write(longer), Write::Without { swallow: longer.len() as u64 + 2 });
    j.stuck();
    assert!(matches!(again().unwrap().what, What::Continue { attempts: 1, .. }), "the client reads nothing");
    j.wrote(3);
    assert!(j.is_idle());
    // another representation, and it is over
    next.inherit(&c.table, FD, 9, &kernel).unwrap().unwrap();
    let (j, _) = next.begin(9);
    j.request(true, Some(0));
    j.answer(Answer { body_len: Some(5), validator: 8 });
    assert_eq!(j.begin_write(longer), Write::Different);
}

/// Whether an answer with the head `first` is gone on with by one that has the head `then`, both with a body of 50 bytes.
fn goes_on(first: &str, then: &str) -> bool {
    let answer = |head: &str| {
        let mut room = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Response::new(&mut room);
        parsed.parse(head.as_bytes()).unwrap();
        let mut headers = http::HeaderMap::new();
        for field in &*parsed.headers {
            let name = http::HeaderName::from_bytes(field.name.as_bytes()).unwrap();
            headers.append(name, http::HeaderValue::from_bytes(field.value).unwrap());
        }
        let status = http::StatusCode::from_u16(parsed.code.unwrap()).unwrap();
        Answer { body_len: Some(50), validator: crate::serve::validator(status, &headers) }
    };
    let mut c = Conn::new();
    c.read(GET);
    c.journal.request(true, Some(0));
    c.journal.answer(answer(first));
    c.write(first.as_bytes());
    c.write(b"0123456789");
    let next = Continuity::new(Size { slots: 16, buffers: 4 }).unwrap();
    let kernel = Facts { bytes_in: Some(c.bytes_in), bytes_out: Some(c.bytes_out), closed: false };
    match next.inherit(&c.table, FD, FD, &kernel).unwrap() {
        Err(why) => {
            // whoever counts it knows already
            assert_eq!(why, Reason::AnswerCut);
            return false;
        }
        Ok(what) => assert!(matches!(what, What::Continue { .. }), "{what:?}"),
    }
    let (j, _) = next.begin(FD);
    j.request(true, Some(0));
    j.answer(answer(then));
    match j.begin_write(then.as_bytes()) {
        Write::Without { swallow } => {
            assert_eq!(swallow, then.len() as u64 + 10);
            true
        }
        Write::Different => false,
        Write::All => panic!("a second answer to one request"),
    }
}

#[test]
fn only_the_same_part_of_the_same_representation_goes_on() {
    let head = |line: &str, fields: &str| format!("HTTP/{line} X\r\n{fields}ETag: \"a\"\r\n\r\n");
    let range = |range: &str| format!("Content-Range: bytes {range}\r\n");
    let all = [
        head("1.1 200", ""),
        head("1.0 200", ""),
        head("1.1 206", &range("0-49/90")),
        head("1.0 206", &range("0-49/90")),
        head("1.1 206", &range("40-89/90")),
        head("1.1 206", &range("0-49/91")),
        head("1.1 206", &range("0-49/*")),
        head("1.1 206", &range("0-49/90")).replace("\"a\"", "\"b\""),
        head("1.1 206", &range("0-49/90").replace("\r\n", "\r\nContent-Encoding: gzip\r\n")),
    ];
    for (n, first) in all.iter().enumerate() {
        for (m, then) in all.iter().enumerate() {
            assert_eq!(goes_on(first, then), n == m, "{first}\n{then}");
        }
    }
    let never = [
        head("1.1 404", ""),
        head("1.1 203", ""),
        // of several parts, or of nobody knows which
        head("1.1 206", "Content-Type: multipart/byteranges; boundary=b\r\n"),
        head("1.1 206", &(range("0-49/90") + &range("40-89/90"))),
        // weak, and none
        head("1.1 206", &range("0-49/90")).replace("ETag: ", "ETag: W/"),
        head("1.1 206", &range("0-49/90")).replace("ETag", "X"),
        // no tags, or two
        head("1.1 200", "").replace("\"a\"", ""),
        head("1.1 200", "").replace("\"a\"", "w/\"a\""),
        head("1.1 200", "").replace("\"a\"", "\""),
        head("1.1 200", "ETag: \"a\"\r\n"),
    ];
    for head in &never {
        assert!(!goes_on(head, head), "{head}");
        assert!(!all.iter().any(|then| goes_on(head, then) || goes_on(then, head)), "{head}");
    }
}

#[test]
fn a_date_stands_for_a_body_only_where_there_is_no_tag() {
    let dates = "Last-Modified: Sat, 22 Nov 2025 09:00:00 GMT\r\nDate: Sat, 22 Nov 2025 10:00:00 GMT\r\n";
    let head = |tag: &str| format!("HTTP/1.1 200 OK\r\n{dates}{tag}\r\n");
    assert!(goes_on(&head(""), &head("")));
    for tag in ["ETag: W/\"a\"\r\n", "ETag:\r\n", "ETag: a\r\n", "ETag: \"a\"\r\nETag: \"b\"\r\n"] {
        assert!(!goes_on(&head(tag), &head(tag)), "{tag}");
        assert!(!goes_on(&head(""), &head(tag)) && !goes_on(&head(tag), &head("")), "{tag}");
    }
    // any byte may be in a tag
    let [one, two] = ["\"\u{e9}\"", "\"\u{e8}\""].map(|tag| head(&format!("ETag: {tag}\r\n")));
    assert!(goes_on(&one, &one) && !goes_on(&one, &two));
}

/// A server of before this was told apart notes a 200 as we do, and goes on with nothing else.
#[test]
fn the_usual_line_leaves_a_validator_as_it_is() {
    assert_eq!(with_line(HEAD, 9), 9);
    assert_ne!(with_line(b"HTTP/1.0 200 OK\r\n\r\n", 9), 9);
    assert_eq!([&b"HTTP/1.1"[..], b"", b"HTTP/1.1 416 X"].map(|head| with_line(head, 9)), [0; 3]);
    assert_eq!(with_line(HEAD, 0), 0);
}

#[test]
fn buffers_are_bounded_and_come_back() {
    let (table, buffers) = pair();
    let mut held = Vec::new();
    for fd in 0..6 {
        let j = Journal::new(&table, &buffers, fd, 0, 0);
        let mut to = [MaybeUninit::uninit(); 64];
        let _ = j.read(&mut to, |room| {
            room[0].write(b'G');
            Poll::Ready(Ok(1))
        });
        held.push(j);
    }
    let lost = |fd| {
        let k = Facts { bytes_in: Some(1), bytes_out: Some(0), closed: false };
        crate::continuity::resume::resume(&table, fd, &k).unwrap().is_err()
    };
    assert_eq!((0..6).map(lost).collect::<Vec<_>>(), [false, false, false, false, true, true]);
    drop(held);
    assert_eq!(buffers.free.lock().unwrap().len(), 4);
    assert!(table.read(0).is_none(), "closed");
    assert!(table.read(99).is_none() && table.read(-1).is_none());
}

/// Any bytes in the place of a table: a reader answers something, and reads nothing that isn't there.
#[test]
fn a_table_of_random_bytes_confuses_nobody() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let size = Size { slots: 16, buffers: 4 };
    let (table, mut verdicts) = (Table::create(size).unwrap(), std::collections::HashMap::new());
    for _ in 0..20_000 {
        for fd in 0..16 {
            for word in &table.slot(fd).unwrap()[..5] {
                // now and then plausible, or nothing plausible would ever be tried
                word.store(
                    if random() % 3 == 0 { random() } else { random() & 0xf000_000f_0000_00ff },
                    Relaxed,
                );
            }
        }
        for b in 0..4 {
            for word in table.buffer_words(b).unwrap() {
                word.store(random() >> (random() % 64), Relaxed);
            }
        }
        for fd in 0..16 {
            let small = |r: u64| (!r.is_multiple_of(4)).then_some(r >> (r % 64));
            let kernel =
                Facts { bytes_in: small(random()), bytes_out: small(random()), closed: random() % 16 == 0 };
            let what = crate::continuity::resume::resume(&table, fd, &kernel);
            let kind = match &what {
                None => "none",
                Some(Err(_)) => "closed",
                Some(Ok(r)) => {
                    assert!(r.bytes.len() <= BUFFER_DATA);
                    "goes on"
                }
            };
            *verdicts.entry(kind).or_insert(0) += 1;
        }
    }
    assert_eq!(verdicts.len(), 3, "{verdicts:?}");
    // a wrong length, no seals, no header
    let truncated = std::fs::File::open("/dev/null").unwrap();
    assert!(Table::open(truncated.into()).is_err());
    let fd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, 4096).unwrap();
    assert!(Table::open(fd.try_clone().unwrap()).is_err());
    rustix::fs::fcntl_add_seals(&fd, rustix::fs::SealFlags::SHRINK).unwrap();
    assert!(Table::open(fd).is_err());
}

#[test]
fn what_the_kernel_says_was_read_and_wasnt_is_nobody_elses() {
    let mut c = Conn::new();
    c.read(b"GET / HTTP/1.1\r\nCookie: secret\r\n\r\n");
    c.journal.request(true, Some(0));
    c.journal.answer(Answer { body_len: Some(5), validator: 0 });
    c.write(HEAD);
    c.write(b"12345");
    assert!(c.journal.is_idle());
    c.read(b"GE");
    let r = c.resume_if(c.bytes_in + 20, c.bytes_out).unwrap();
    assert_eq!(r.bytes, [&b"GE"[..], &[0; 20]].concat());
}

#[test]
fn of_what_was_not_noted_the_kernel_knows_how_much_it_was() {
    let size = Size { slots: 16, buffers: 4 };
    let (dead, next) = (Continuity::new(size).unwrap(), Continuity::new(size).unwrap());
    let used = Facts { bytes_in: Some(150), bytes_out: Some(200), closed: false };
    let fresh = Facts { bytes_in: Some(0), bytes_out: Some(0), closed: false };
    let inherit = |kernel: &Facts| {
        let what = next.inherit(dead.table(), FD, 9, kernel);
        (what, next.begin(9).1.map(|r| (r.bytes_in, r.bytes_out, r.what)))
    };
    // passed on to the dead one, which hadn't noted it yet
    assert_eq!(inherit(&used), (None, Some((150, 200, What::GoOn))));
    assert_eq!(inherit(&fresh), (None, Some((0, 0, What::GoOn))));
    assert_eq!(inherit(&Facts { closed: true, ..used }), (None, None));
    // it was about to close it: the middle of an answer may be where it stands
    let (journal, _) = dead.begin(FD);
    let closed = journal.closed();
    drop(journal);
    assert_eq!(inherit(&used), (Some(Err(Reason::Closed)), None));
    assert_eq!(inherit(&Facts::default()), (Some(Err(Reason::Closed)), None), "a Unix socket");
    // the number is another's, which it hasn't noted
    assert_eq!(inherit(&fresh).0, None);
    drop(closed);
    assert_eq!(inherit(&used).0, None);
    // what another server has is left to that one, until it is closed here
    let (journal, _) = dead.begin(FD);
    let closed = journal.closed();
    journal.pass_on(true);
    drop(journal);
    assert_eq!(inherit(&used), (Some(Err(Reason::PassedOn)), None));
    drop(closed);
    assert_eq!(inherit(&fresh).0, None);
    // and one that has it already keeps it
    let (first, _) = dead.begin(FD);
    let closed = first.closed();
    drop(first);
    let _second = dead.begin(FD);
    drop(closed);
    assert!(dead.table().serves(FD));
}

#[test]
fn a_head_is_what_the_parser_takes_for_one() {
    for (bytes, len) in [
        ("GET / HTTP/1.1\r\n\r\n", Some(18)),
        ("\r\n\r\nGET / HTTP/1.1\r\n\r\nrest", Some(22)),
        ("\n\nGET / HTTP/1.1\nA: b\n\nrest", Some(23)),
        ("\r\n\r\n", None),
        ("\r\nGET / HTTP/1.1\r\n", None),
    ] {
        assert_eq!(head_len(bytes.as_bytes()), len, "{bytes:?}");
        let mut fields = [httparse::EMPTY_HEADER; 4];
        let parsed = httparse::Request::new(&mut fields).parse(bytes.as_bytes()).unwrap();
        assert_eq!(len, if parsed.is_complete() { Some(parsed.unwrap()) } else { None }, "{bytes:?}");
    }
}

#[test]
fn the_last_answer_is_the_end() {
    for (head, last) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\nContent-Length: 5\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\n", true),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", true),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n", false),
    ] {
        let mut c = Conn::new();
        c.read(&[GET, GET].concat());
        c.journal.request(true, Some(0));
        c.journal.answer(Answer { body_len: Some(5), validator: 0 });
        c.write(head.as_bytes());
        c.write(b"12");
        let next = Continuity::new(Size { slots: 16, buffers: 4 }).unwrap();
        let inherit = |c: &Conn, more: u64| {
            let out = Some(c.bytes_out + more);
            let kernel = Facts { bytes_in: Some(c.bytes_in), bytes_out: out, closed: false };
            let what = next.inherit(&c.table, FD, FD, &kernel).unwrap();
            (what, next.begin(FD).1.map(|r| r.bytes))
        };
        let want = if last { (Err(Reason::Closed), None) } else { (Ok(What::GoOn), Some(GET.to_vec())) };
        // it is out and not noted, and noted
        assert_eq!(inherit(&c, 3), want, "{head}");
        c.write(b"345");
        assert_eq!(inherit(&c, 0), want, "{head}");
    }
}

#[test]
fn a_unix_socket_that_was_being_read_from_is_nobodys() {
    let c = Conn::new();
    c.journal.set_uncounted();
    let look =
        || crate::continuity::resume::resume(&c.table, FD, &Facts::default()).unwrap().map(|r| r.bytes);
    let mut to = [MaybeUninit::uninit(); 64];
    let mut read = |bytes: &[u8]| {
        let _ = c.journal.read(&mut to, |room| {
            room.iter_mut().zip(bytes).for_each(|(to, byte)| _ = to.write(*byte));
            assert_eq!(look(), Err(Reason::Untracked));
            if bytes.is_empty() { Poll::Pending } else { Poll::Ready(Ok(bytes.len())) }
        });
        look()
    };
    assert_eq!(read(b"GET"), Ok(b"GET".to_vec()));
    assert_eq!(read(b""), Ok(b"GET".to_vec()));
    assert_eq!(read(b" /"), Ok(b"GET /".to_vec()));
}

//! What a connection costs that does nothing.

use std::os::unix::net::UnixStream;

/// The task of a connection lives as long as the connection; what only a busy one needs has a place of its own.
#[test]
fn the_future_of_a_connection_is_small() {
    engine::block_on(async {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let stream = engine::net::Stream::try_from(ours).unwrap();
        let proxy = proxy::Proxy::new(proxy::ProxyConfig { name: "size".into(), ..Default::default() });
        let size = std::mem::size_of_val(&proxy.connection(stream, None));
        assert!(size <= 1024, "{size} bytes");
    });
}

//! Media types by a file name's extension.

use std::path::Path;

/// The media type of a name; bytes if it isn't known.
pub fn of(name: &Path) -> &'static str {
    let extension = name.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let found = KINDS.iter().find(|(list, _)| list.split(' ').any(|e| e == extension));
    found.map_or("application/octet-stream", |(_, kind)| kind)
}

static KINDS: &[(&str, &str)] = &[
    ("html htm", "text/html; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("js mjs", "text/javascript; charset=utf-8"),
    ("txt log md", "text/plain; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("xml", "application/xml"),
    ("json map", "application/json"),
    ("webmanifest", "application/manifest+json"),
    ("wasm", "application/wasm"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("jpg jpeg", "image/jpeg"),
    ("gif", "image/gif"),
    ("webp", "image/webp"),
    ("avif", "image/avif"),
    ("ico", "image/x-icon"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("ttf", "font/ttf"),
    ("otf", "font/otf"),
    ("mp3", "audio/mpeg"),
    ("ogg", "audio/ogg"),
    ("mp4", "video/mp4"),
    ("webm", "video/webm"),
    ("pdf", "application/pdf"),
    ("zip", "application/zip"),
    ("gz", "application/gzip"),
    ("tar", "application/x-tar"),
];

#[cfg(test)]
mod tests {
    #[test]
    fn extensions_in_any_case() {
        let of = |n: &str| super::of(n.as_ref());
        assert_eq!(of("a.HTML"), "text/html; charset=utf-8");
        assert_eq!(of("a.tar.gz"), "application/gzip");
        assert_eq!(of("README"), "application/octet-stream");
    }
}

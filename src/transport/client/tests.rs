use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::Url;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{net::TcpListener, sync::Barrier};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::transport::{
    address::{Guard, parse_range},
    clients::Clients,
    resolver::Dns,
};

const AT_ONCE: usize = 100;
const LIMIT: Duration = Duration::from_secs(30);

/// TLS with HTTP/2 for localhost, and its certificate.
fn tls() -> (TlsAcceptor, CertificateDer<'static>) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), certificate)
}

/// An endpoint that answers the first request immediately and then several at a time; with its number of connections.
async fn answers(acceptor: TlsAcceptor, answer: Bytes) -> (Url, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
    let connections = Arc::new(AtomicUsize::new(0));
    let (counted, barrier) = (Arc::clone(&connections), Arc::new(Barrier::new(AT_ONCE)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let stream = acceptor.accept(stream).await.unwrap();
            let (barrier, answer, served) = (Arc::clone(&barrier), answer.clone(), Arc::new(AtomicUsize::new(0)));
            let service = service_fn(move |_: Request<Incoming>| {
                let (barrier, answer) = (Arc::clone(&barrier), answer.clone());
                let first = served.fetch_add(1, Ordering::Relaxed) == 0;
                async move {
                    if !first {
                        barrier.wait().await;
                    }
                    Ok::<_, Infallible>(http::Response::new(Full::new(answer)))
                }
            });
            let server = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    (url.parse().unwrap(), connections)
}

#[tokio::test]
async fn simultaneous_responses_on_one_connection_are_all_read() {
    let (acceptor, certificate) = tls();
    let answer = Bytes::from(vec![b'x'; 16 * 1024]);
    let (url, connections) = answers(acceptor, answer.clone()).await;
    let ranges = ["127.0.0.0/8", "::1/128"].map(|range| parse_range(range).unwrap());
    let guard = Guard::new(&ranges, &[], Vec::new());
    let clients = Clients::new(vec![certificate], guard, Arc::new(Dns::system()), None).unwrap();
    let (client, uri) = clients.client(&url, None).unwrap();
    let ask = || async {
        let mut response =
            client.post(&"ns".into(), uri.clone(), HeaderMap::new(), Bytes::from_static(b"{}"), LIMIT).await.unwrap();
        let mut length = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            length += chunk.len();
        }
        length
    };
    assert_eq!(ask().await, answer.len());
    let lengths = futures::future::join_all((0..AT_ONCE).map(|_| ask())).await;
    assert_eq!(lengths, vec![answer.len(); AT_ONCE]);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

mod connections {
    use std::{
        future::Future,
        sync::{Mutex, atomic::AtomicBool},
    };

    use tokio::{
        io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        delivery::failure::{Redaction, describe_error},
        transport::pool::MAX_AGE,
    };
    use llmtune_core::attempt::Class;

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

    /// A server that calls this for each connection, with its number, starting at 1.
    async fn server<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(usize, TcpStream) -> F + Send + 'static,
    ) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(counted.fetch_add(1, Ordering::SeqCst) + 1, stream));
            }
        });
        (port, accepted)
    }

    /// Reads one HTTP/1.1 request; `None` at the end.
    async fn request(stream: &mut TcpStream) -> Option<String> {
        let mut request = Vec::new();
        loop {
            let byte = stream.read_u8().await.ok()?;
            request.push(byte);
            // The body of every request in these tests.
            if request.ends_with(b"\r\n\r\n{}") {
                return String::from_utf8(request).ok();
            }
        }
    }

    fn clients(roots: Vec<CertificateDer<'static>>) -> Clients {
        Clients::new(roots, Guard::open(), Arc::new(Dns::system()), None).unwrap()
    }

    async fn post_for(clients: &Clients, tenant: &str, url: &str, limit: Duration) -> (Class, String) {
        let url = Url::parse(url).unwrap();
        match clients.post(&tenant.into(), &url, None, HeaderMap::new(), "{}".into(), limit).await {
            Ok(mut response) => {
                while let Ok(Some(_)) = response.chunk().await {}
                // Gives the connection time to become ready again.
                tokio::time::sleep(Duration::from_millis(20)).await;
                (Class::Success, response.status().to_string())
            }
            Err(error) => describe_error(&error, limit, Redaction::None),
        }
    }

    async fn post(clients: &Clients, url: &str) -> (Class, String) {
        post_for(clients, "ns", url, LIMIT).await
    }

    #[tokio::test]
    async fn namespaces_do_not_share_connections() {
        let (port, accepted) = server(|_, mut stream| async move {
            while request(&mut stream).await.is_some() {
                stream.write_all(OK.as_bytes()).await.unwrap();
            }
        })
        .await;
        let (clients, url) = (clients(Vec::new()), format!("http://127.0.0.1:{port}/"));
        for (tenant, connections) in [("a", 1), ("a", 1), ("b", 2), ("a", 2), ("b", 2)] {
            assert_eq!(post_for(&clients, tenant, &url, LIMIT).await.0, Class::Success);
            assert_eq!(accepted.load(Ordering::SeqCst), connections, "{tenant}");
        }
        tokio::time::pause();
        tokio::time::advance(MAX_AGE).await;
        tokio::time::resume();
        assert_eq!(post_for(&clients, "a", &url, LIMIT).await.0, Class::Success);
        assert_eq!(accepted.load(Ordering::SeqCst), 3, "an old connection is not used again");
    }

    #[tokio::test]
    async fn connection_closed_on_reuse_costs_no_attempt() {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let (port, accepted) = server(move |_, mut stream| {
            let counted = Arc::clone(&counted);
            async move {
                request(&mut stream).await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                stream.write_all(OK.as_bytes()).await.unwrap();
                // Reads the next request, and closes.
                if request(&mut stream).await.is_some() {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
        .await;
        let (clients, url) = (clients(Vec::new()), format!("http://127.0.0.1:{port}/"));
        for _ in 0..3 {
            let (class, error) = post(&clients, &url).await;
            assert_eq!(class, Class::Success, "{error}");
        }
        // The second and the third request were sent twice.
        assert_eq!((accepted.load(Ordering::SeqCst), requests.load(Ordering::SeqCst)), (3, 5));
    }

    #[tokio::test]
    async fn no_resend_on_new_connections_or_after_first_byte() {
        // A new connection that breaks.
        let (port, accepted) = server(|_, mut stream| async move {
            request(&mut stream).await;
        })
        .await;
        let (class, error) = post(&clients(Vec::new()), &format!("http://127.0.0.1:{port}/")).await;
        assert!(class == Class::Protocol && error.starts_with("the connection broke: "), "{class:?} {error}");
        assert_eq!(accepted.load(Ordering::SeqCst), 1);
        // One byte of an answer.
        let (port, accepted) = server(|_, mut stream| async move {
            request(&mut stream).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
            request(&mut stream).await;
            let _ = stream.write_all(b"H").await;
        })
        .await;
        let (begun, url) = (clients(Vec::new()), format!("http://127.0.0.1:{port}/"));
        assert_eq!(post(&begun, &url).await.0, Class::Success);
        assert_eq!(post(&begun, &url).await.0, Class::Protocol);
        assert_eq!(accepted.load(Ordering::SeqCst), 1);
        // The new connection breaks as well.
        let (port, accepted) = server(|number, mut stream| async move {
            request(&mut stream).await;
            if number == 1 {
                stream.write_all(OK.as_bytes()).await.unwrap();
                request(&mut stream).await;
            }
        })
        .await;
        let (twice, url) = (clients(Vec::new()), format!("http://127.0.0.1:{port}/"));
        assert_eq!(post(&twice, &url).await.0, Class::Success);
        assert_eq!(post(&twice, &url).await.0, Class::Protocol);
        assert_eq!(accepted.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn timeout_excludes_all_connections_to_the_origin() {
        let silent = Arc::new(AtomicBool::new(false));
        let mute = Arc::clone(&silent);
        let (port, accepted) = server(move |number, mut stream| {
            let mute = Arc::clone(&mute);
            async move {
                while request(&mut stream).await.is_some() {
                    // The first connections stop without closing.
                    if number <= 3 && mute.load(Ordering::SeqCst) {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    stream.write_all(OK.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let (clients, url) = (clients(Vec::new()), format!("http://127.0.0.1:{port}/"));
        let three = futures::future::join_all((0..3).map(|_| post(&clients, &url))).await;
        assert!(three.iter().all(|(class, _)| *class == Class::Success));
        assert_eq!(accepted.load(Ordering::SeqCst), 3);
        silent.store(true, Ordering::SeqCst);
        let limit = Duration::from_millis(400);
        let (class, error) = post_for(&clients, "ns", &url, limit).await;
        assert!(class == Class::Timeout && error.contains("answer before any work"), "{error}");
        let (class, error) = post_for(&clients, "ns", &url, limit).await;
        assert_eq!((class, accepted.load(Ordering::SeqCst)), (Class::Success, 4), "{error}");
    }

    /// A response of a real server, and the status that curl and browsers read.
    const ODD_ANSWERS: [(&str, &str); 26] = [
        (
            "folded",
            "HTTP/1.1 200 OK\r\nContent-Security-Policy: default-src 'self';\r\n script-src 'none'\r\nContent-Length: 0\r\n\r\n",
        ),
        ("folded by a tab", "HTTP/1.1 200 OK\r\nX-A: a;\r\n\tb;\r\n\t c\r\nContent-Length: 0\r\n\r\n"),
        ("folded, bare LF", "HTTP/1.1 200 OK\nX-A: a;\n b\nContent-Length: 0\n\n"),
        ("bare LF", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
        ("no reason", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
        ("empty reason", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"),
        ("HTTP/1.0 until the end", "HTTP/1.0 200 OK\r\nServer: BaseHTTP/0.6\r\n\r\nok"),
        ("without a length", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok"),
        ("space before the colon", "HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 0\r\n\r\n"),
        ("no colon", "HTTP/1.1 200 OK\r\nthis is no header\r\nContent-Length: 0\r\n\r\n"),
        ("no name", "HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 0\r\n\r\n"),
        ("odd name", "HTTP/1.1 200 OK\r\nX(A) {b}: c\r\nContent-Length: 0\r\n\r\n"),
        ("no value", "HTTP/1.1 200 OK\r\nX-A:\r\nContent-Length: 0\r\n\r\n"),
        ("the same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
        ("the same length in a list", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok"),
        (
            "length and chunks",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        ("chunk extension", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nX-T: 1\r\n\r\n"),
        ("no last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"),
        ("another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nConnection: close\r\n\r\nok"),
        ("shorter than it says", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"),
        ("longer than it says", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more"),
        ("hints first", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (
            "continue first",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        ("an empty line first", "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("no content with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"),
        (
            "a body without an end of the head's last line",
            "HTTP/1.1 200 OK\r\nSet-Cookie: a=b; path=/\r\nSet-Cookie: c=d\r\n\r\n",
        ),
    ];

    async fn read_answer(answer: Vec<u8>) -> (Class, String) {
        let (port, _) = server(move |_, mut stream| {
            let answer = answer.clone();
            async move {
                request(&mut stream).await;
                stream.write_all(&answer).await.unwrap();
                let _ = stream.shutdown().await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        })
        .await;
        post(&clients(Vec::new()), &format!("http://127.0.0.1:{port}/")).await
    }

    #[tokio::test]
    async fn responses_are_read_as_by_curl_and_browsers() {
        let ok = |fields: &[u8]| [b"HTTP/1.1 200 OK\r\n", fields, b"Content-Length: 0\r\n\r\n"].concat();
        let mut answers: Vec<(String, Vec<u8>)> =
            ODD_ANSWERS.map(|(what, answer)| (what.to_owned(), answer.into())).into();
        answers.extend([
            ("Latin-1".to_owned(), ok(b"X-A: caf\xe9\r\n")),
            ("Latin-1 in the reason".to_owned(), b"HTTP/1.1 200 Termin\xe9\r\nContent-Length: 0\r\n\r\n".to_vec()),
            ("UTF-8 in a name".to_owned(), ok("X-é: a\r\n".as_bytes())),
            ("990 headers".to_owned(), ok(&b"X-A: b\r\n".repeat(990))),
            ("100 KiB in one header".to_owned(), ok(&[b"X-A: ", &vec![b'a'; 100 * 1024][..], b"\r\n"].concat())),
        ]);
        let mut wrong = Vec::new();
        for (what, answer) in answers {
            let (class, text) = read_answer(answer).await;
            if class != Class::Success || !text.starts_with("20") {
                wrong.push(format!("{what}: {class:?} {text}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[tokio::test]
    async fn too_large_and_ambiguous_responses_are_refused() {
        let ok = |fields: &[u8]| [b"HTTP/1.1 200 OK\r\n", fields, b"\r\n"].concat();
        for (what, answer) in [
            ("1001 headers", ok(&b"X-A: b\r\n".repeat(1001))),
            ("more than 128 KiB", ok(&[b"X-A: ", &vec![b'a'; 200 * 1024][..], b"\r\n"].concat())),
            ("two lengths", ok(b"Content-Length: 1\r\nContent-Length: 2\r\n")),
            ("NUL", ok(b"X-A: a\0b\r\n")),
            ("another protocol", b"ICY 200 OK\r\n\r\n".to_vec()),
        ] {
            let (class, text) = read_answer(answer).await;
            assert!(class == Class::Protocol && text.starts_with("the connection broke: "), "{what}: {class:?} {text}");
        }
    }

    #[tokio::test]
    async fn header_names_are_in_title_case_over_http1() {
        let seen = Arc::new(Mutex::new(String::new()));
        let keep = Arc::clone(&seen);
        let (port, _) = server(move |_, mut stream| {
            let keep = Arc::clone(&keep);
            async move {
                *keep.lock().unwrap() = request(&mut stream).await.unwrap();
                stream.write_all(OK.as_bytes()).await.unwrap();
            }
        })
        .await;
        let mut headers = HeaderMap::new();
        for name in ["x-hub-signature-256", "x-llmtune-event-id", "traceparent", "webhook-id", "ce-specversion"] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        let url = Url::parse(&format!("http://127.0.0.1:{port}/hook?a=b")).unwrap();
        clients(Vec::new()).post(&"ns".into(), &url, None, headers, "{}".into(), LIMIT).await.unwrap();
        let seen = seen.lock().unwrap().clone();
        let lines: Vec<&str> = seen.split("\r\n").collect();
        assert_eq!(lines[0], "POST /hook?a=b HTTP/1.1");
        for line in [
            "X-Hub-Signature-256: 1",
            "X-Llmtune-Event-Id: 1",
            "Traceparent: 1",
            "Webhook-Id: 1",
            "Ce-Specversion: 1",
            "Content-Length: 2",
            &format!("Host: 127.0.0.1:{port}"),
            &format!("User-Agent: llmtune-webhooks/{}", env!("CARGO_PKG_VERSION")),
        ] {
            assert!(lines.contains(&line), "{line} is not in {lines:?}");
        }
    }

    /// Reads one HTTP/2 frame: its type, stream and payload.
    async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.ok()?;
        Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    async fn send_frame(stream: &mut (impl AsyncWrite + Unpin), kind: u8, flags: u8, id: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &id.to_be_bytes(), payload].concat();
        let _ = stream.write_all(&frame).await;
    }

    /// How an HTTP/2 server reacts to the second request on its first connection.
    #[derive(Clone, Copy, Debug)]
    enum Second {
        /// GOAWAY with the first stream as the last processed one.
        GoAway,
        /// GOAWAY with the second stream as processed, and the end.
        GoAwayProcessed,
        Refuse,
        /// `RST_STREAM` for another reason.
        Reset,
        Close,
        Silence,
    }

    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    /// `:status: 200` (RFC 7541), with the end of headers and stream.
    const STATUS_200: &[u8] = &[0x88];
    const ENDS: u8 = 5;

    /// Returns the number of requests and of connections of an HTTP/2 server.
    async fn http2_server(
        second: Second,
        from: usize,
    ) -> (u16, CertificateDer<'static>, Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let (acceptor, certificate) = tls();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let (port, accepted) = server(move |number, stream| {
            let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.read_exact(&mut [0; 24]).await;
                send_frame(&mut stream, SETTINGS, 0, 0, &[]).await;
                let mut mute = false;
                while let Some((kind, id, payload)) = frame(&mut stream).await {
                    if mute {
                        continue;
                    }
                    match kind {
                        PING => send_frame(&mut stream, PING, 1, 0, &payload).await,
                        HEADERS if number == 1 && id as usize >= from => {
                            counted.fetch_add(1, Ordering::SeqCst);
                            let last = |id: u32| [&id.to_be_bytes()[..], &[0; 4]].concat();
                            match second {
                                Second::GoAway => send_frame(&mut stream, GOAWAY, 0, 0, &last(id - 2)).await,
                                Second::GoAwayProcessed => {
                                    send_frame(&mut stream, GOAWAY, 0, 0, &last(id)).await;
                                    return;
                                }
                                Second::Refuse => send_frame(&mut stream, RST_STREAM, 0, id, &[0, 0, 0, 7]).await,
                                Second::Reset => send_frame(&mut stream, RST_STREAM, 0, id, &[0, 0, 0, 2]).await,
                                Second::Close => return,
                                Second::Silence => mute = true,
                            }
                        }
                        HEADERS => {
                            counted.fetch_add(1, Ordering::SeqCst);
                            send_frame(&mut stream, HEADERS, ENDS, id, STATUS_200).await;
                        }
                        _ => {}
                    }
                }
            }
        })
        .await;
        (port, certificate, requests, accepted)
    }

    #[tokio::test]
    async fn unprocessed_http2_request_is_resent_once() {
        for (second, class, requests, connections) in [
            (Second::GoAway, Class::Success, 3, 2),
            (Second::Refuse, Class::Success, 3, 2),
            (Second::Close, Class::Success, 3, 2),
            (Second::Reset, Class::Protocol, 2, 1),
        ] {
            let (port, certificate, counted, accepted) = http2_server(second, 3).await;
            let (clients, url) = (clients(vec![certificate]), format!("https://localhost:{port}/"));
            let (first, error) = post(&clients, &url).await;
            assert_eq!(first, Class::Success, "{second:?}: {error}");
            let (is, error) = post(&clients, &url).await;
            assert_eq!(is, class, "{second:?}: {error}");
            let seen = (counted.load(Ordering::SeqCst), accepted.load(Ordering::SeqCst));
            assert_eq!(seen, (requests, connections), "{second:?}");
        }
    }

    #[tokio::test]
    async fn new_http2_connection_resends_only_unprocessed_requests() {
        for (second, class, connections) in [
            (Second::Refuse, Class::Success, 2),
            (Second::Close, Class::Protocol, 1),
            (Second::GoAwayProcessed, Class::Protocol, 1),
        ] {
            let (port, certificate, _, accepted) = http2_server(second, 1).await;
            let (is, error) = post(&clients(vec![certificate]), &format!("https://localhost:{port}/")).await;
            assert_eq!((is, accepted.load(Ordering::SeqCst)), (class, connections), "{second:?}: {error}");
        }
    }

    #[tokio::test]
    async fn timeout_excludes_the_http2_connection() {
        let (port, certificate, _, accepted) = http2_server(Second::Silence, 3).await;
        let (clients, url) = (clients(vec![certificate]), format!("https://localhost:{port}/"));
        assert_eq!(post(&clients, &url).await.0, Class::Success);
        let (class, error) = post_for(&clients, "ns", &url, Duration::from_millis(500)).await;
        assert_eq!(class, Class::Timeout, "{error}");
        let (class, error) = post(&clients, &url).await;
        assert_eq!((class, accepted.load(Ordering::SeqCst)), (Class::Success, 2), "{error}");
    }

    #[tokio::test]
    async fn dead_http2_connection_is_replaced_within_the_attempt() {
        let (port, certificate, _, accepted) = http2_server(Second::Silence, 3).await;
        let (clients, url) = (clients(vec![certificate]), format!("https://localhost:{port}/"));
        assert_eq!(post(&clients, &url).await.0, Class::Success);
        let begun = Instant::now();
        let (class, error) = post(&clients, &url).await;
        assert_eq!((class, accepted.load(Ordering::SeqCst)), (Class::Success, 2), "{error}");
        // 10 s of silence, and 15 s for the answer to a ping.
        assert!(begun.elapsed() < Duration::from_secs(28), "{:?}", begun.elapsed());
    }
}

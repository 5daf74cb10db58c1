//! Proxies to the apiserver, for the operator and the plugin: an HTTP proxy and a SOCKS5 proxy on loopback. Only they
//! can resolve the apiserver's host.

use std::{
    ffi::OsStr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::support::plugin_binary;

/// A name that does not resolve.
const HOST: &str = "apiserver.test:6443";

#[derive(Clone, Copy)]
enum Kind {
    Http,
    Socks5,
}

/// A proxy that connects to the apiserver for every request.
struct Gateway {
    port: u16,
    /// The received requests: request heads of HTTP, hosts of SOCKS.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Gateway {
    async fn start(kind: Kind, apiserver: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let head = match kind {
                        Kind::Http => connect(&mut client).await,
                        Kind::Socks5 => socks(&mut client).await,
                    };
                    let refused = head.contains("no-entry");
                    seen.lock().unwrap().push(head);
                    if refused {
                        let _ = client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
                        return;
                    }
                    if matches!(kind, Kind::Http) {
                        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    }
                    let mut server = TcpStream::connect(("127.0.0.1", apiserver)).await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { port, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn connect(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { break };
        head.push(byte);
    }
    String::from_utf8(head).unwrap()
}

/// RFC 1928, without authentication.
async fn socks(client: &mut TcpStream) -> String {
    let mut greeting = [0; 2];
    client.read_exact(&mut greeting).await.unwrap();
    client.read_exact(&mut vec![0; greeting[1].into()]).await.unwrap();
    client.write_all(&[5, 0]).await.unwrap();
    let mut request = [0; 5];
    client.read_exact(&mut request).await.unwrap();
    assert_eq!(request[3], 3, "the name is resolved by the proxy");
    let mut host = vec![0; request[4].into()];
    client.read_exact(&mut host).await.unwrap();
    let port = client.read_u16().await.unwrap();
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    format!("{}:{port}", String::from_utf8(host).unwrap())
}

/// The admin's kubeconfig for the apiserver under its name, with this `proxy-url`.
fn kubeconfig(scene: &Scene, proxy: Option<&str>) -> PathBuf {
    let text = std::fs::read_to_string(scene.plane.kubeconfig("admin")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let cluster = &mut config["clusters"][0]["cluster"];
    cluster["server"] = format!("https://{HOST}").into();
    cluster["tls-server-name"] = "127.0.0.1".into();
    if let Some(proxy) = proxy {
        cluster["proxy-url"] = proxy.into();
    }
    let path = temporary_folder("proxied").join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// A command with only these environment variables.
fn command(program: impl AsRef<OsStr>, kubeconfig: &PathBuf, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    command.env("KUBECONFIG", kubeconfig).envs(variables.iter().copied());
    command
}

/// The output of `kubectl llmtune status -A`, or its error.
fn status(kubeconfig: &PathBuf, variables: &[(&str, &str)]) -> Result<String, String> {
    let output = command(plugin_binary(), kubeconfig, variables).args(["status", "-A"]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn operator_and_plugin_reach_the_apiserver_through_proxies() {
    run(async {
        let scene = Scene::new("proxied").await;
        scene.webhook("ci", "https://ci.example.com", &json!({}));
        let http = Gateway::start(Kind::Http, scene.plane.port).await;
        let socks = Gateway::start(Kind::Socks5, scene.plane.port).await;
        let of_user = format!("http://us%40er:hun%3Ater2@127.0.0.1:{}", http.port);
        let bare = format!("127.0.0.1:{}", http.port);
        let dead = "http://127.0.0.1:9";
        let named = [
            kubeconfig(&scene, None),
            kubeconfig(&scene, Some(&of_user)),
            kubeconfig(&scene, Some(&format!("socks5://127.0.0.1:{}", socks.port))),
        ];
        let [plain, by_http, by_socks] = &named;
        for (config, variables) in [
            (plain, &[("HTTPS_PROXY", of_user.as_str()), ("NO_PROXY", "10.0.0.0/8,,apiserver.example,")][..]),
            (plain, &[("https_proxy", bare.as_str())]),
            // The kubeconfig's proxy takes precedence over the environment's, and over NO_PROXY.
            (by_http, &[("HTTPS_PROXY", dead), ("NO_PROXY", "*")]),
            (by_socks, &[]),
        ] {
            let output = status(config, variables);
            assert!(output.as_ref().is_ok_and(|output| output.contains("ci")), "{variables:?}: {output:?}");

            let port = free_port();
            let mut operator = command(BINARY, config, variables);
            operator.args(["run", "--namespace", &scene.namespace, "--watch-namespace", &scene.namespace]);
            operator.arg(format!("--listen=127.0.0.1:{port}"));
            let log = temporary_folder("operator").join("operator.log");
            let mut process = Process::start("operator", &mut operator, &log);
            eventually("it leads", SOON, || async {
                let (code, ready) = get(port, "/readyz")?;
                (code == 200 && ready.starts_with("leader")).then_some(())
            })
            .await;
            let log = process.log_text();
            let through = log.lines().find(|line| line.contains("reached through a proxy")).unwrap_or_default();
            println!("{through}");
            assert!(through.contains("127.0.0.1") && !log.contains("hun"), "{log}");
            process.stop(SOON);
        }
        let asked = http.asked();
        assert!(asked.iter().all(|head| head.starts_with(&format!("CONNECT {HOST} HTTP/1.1\r\n"))), "{asked:?}");
        let credentials = "Proxy-Authorization: Basic dXNAZXI6aHVuOnRlcjI=\r\n";
        assert!(asked.iter().any(|head| head.contains(credentials)), "{asked:?}");
        assert!(socks.asked().len() > 1 && socks.asked().iter().all(|host| host == HOST));
    });
}

#[test]
fn no_proxy_and_loopback_are_kept_from_proxies() {
    run(async {
        let scene = Scene::new("unproxied").await;
        scene.webhook("ci", "https://ci.example.com", &json!({}));
        let gateway = Gateway::start(Kind::Http, scene.plane.port).await;
        let proxy = format!("http://127.0.0.1:{}", gateway.port);
        let plain = kubeconfig(&scene, None);
        for no_proxy in ["*", "test", ".test", "a,apiserver.test:6443"] {
            let output = status(&plain, &[("HTTPS_PROXY", &proxy), ("NO_PROXY", no_proxy)]).unwrap_err();
            assert!(!output.contains("proxy") && gateway.asked().is_empty(), "{no_proxy}: {output}");
        }
        // As in kubectl, an invalid URL is ignored.
        let direct = scene.plane.kubeconfig("admin");
        assert!(status(&direct, &[("HTTPS_PROXY", "http://[ nonsense")]).unwrap().contains("ci"));
        // Variables never apply to loopback.
        let output = status(&scene.plane.kubeconfig("admin"), &[("HTTPS_PROXY", "http://127.0.0.1:9")]).unwrap();
        assert!(output.contains("ci"), "{output}");

        let output = status(&plain, &[("HTTPS_PROXY", "http://127.0.0.1:9")]).unwrap_err();
        println!("{output}");
        assert!(output.contains("through the proxy http://127.0.0.1:9 (HTTPS_PROXY)"), "{output}");
        let refusing = kubeconfig(&scene, Some(&proxy));
        let text = std::fs::read_to_string(&refusing).unwrap().replace("apiserver.test", "no-entry.test");
        std::fs::write(&refusing, text).unwrap();
        let output = status(&refusing, &[]).unwrap_err();
        println!("{output}");
        assert!(
            output.contains("(proxy-url of the kubeconfig)") && output.contains("proxy authorization required"),
            "{output}"
        );
        let output = status(&kubeconfig(&scene, Some("proxy.example.com:3128")), &[]).unwrap_err();
        assert!(output.contains("set an http, https or socks5 URL"), "{output}");
    });
}

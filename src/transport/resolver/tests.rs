use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Mutex,
    time::Instant,
};

use hickory_resolver::{
    config::ConnectionConfig,
    proto::{
        op::{Message, MessageType},
        rr::{
            Record,
            rdata::{A, AAAA, CNAME},
        },
        serialize::binary::{BinDecodable, BinEncodable},
    },
};
use tokio::net::UdpSocket;

use super::*;

/// The responses of a name server.
#[derive(Clone, Copy)]
enum Reply {
    Has(&'static str),
    HasFor(&'static str, u32),
    Alias(&'static str, &'static str),
    Code(ResponseCode),
    Nothing,
}

const NODATA: Reply = Reply::Code(ResponseCode::NoError);
const NXDOMAIN: Reply = Reply::Code(ResponseCode::NXDomain);

/// A name server on loopback, and its questions.
struct Server {
    config: ResolverConfig,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answer: impl Fn(&str, RecordType) -> Reply + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut connection = ConnectionConfig::udp();
        connection.port = socket.local_addr().unwrap().port();
        let server = NameServerConfig::new([127, 0, 0, 1].into(), true, vec![connection]);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let Ok(question) = Message::from_bytes(&buffer[..length]) else { continue };
                let query = question.queries[0].clone();
                let name = query.name().to_ascii();
                seen.lock().unwrap().push(format!("{name} {}", query.query_type()));
                let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
                reply.metadata.message_type = MessageType::Response;
                reply.metadata.recursion_available = true;
                reply.add_query(query.clone());
                let address = |text: &str| match text.parse::<IpAddr>().unwrap() {
                    IpAddr::V4(address) => RData::A(A(address)),
                    IpAddr::V6(address) => RData::AAAA(AAAA(address)),
                };
                match answer(&name, query.query_type()) {
                    Reply::Has(text) => {
                        reply.add_answer(Record::from_rdata(query.name().clone(), 30, address(text)));
                    }
                    Reply::HasFor(text, ttl) => {
                        reply.add_answer(Record::from_rdata(query.name().clone(), ttl, address(text)));
                    }
                    Reply::Alias(other, text) => {
                        let other = Name::from_ascii(other).unwrap();
                        let alias = RData::CNAME(CNAME(other.clone()));
                        reply.add_answer(Record::from_rdata(query.name().clone(), 30, alias));
                        reply.add_answer(Record::from_rdata(other, 30, address(text)));
                    }
                    Reply::Code(code) => reply.metadata.response_code = code,
                    Reply::Nothing => continue,
                }
                let _ = socket.send_to(&reply.to_bytes().unwrap(), from).await;
            }
        });
        Self { config: ResolverConfig::from_name_servers(vec![server]), asked }
    }

    fn dns(&self) -> Dns {
        self.dns_with(&[], 1, Hosts::default())
    }

    fn dns_with(&self, search: &[&str], ndots: usize, hosts: Hosts) -> Dns {
        let mut config = self.config.clone();
        for domain in search {
            config.add_search(Name::from_ascii(domain).unwrap());
        }
        let mut options = ResolverOpts::default();
        (options.ndots, options.timeout, options.attempts) = (ndots, Duration::from_secs(1), 1);
        Dns::new(config, options, hosts)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn find(dns: &Dns, host: &str) -> Result<Vec<IpAddr>, LookupError> {
    dns.resolve(host.to_owned()).await
}

fn v4(text: &str) -> IpAddr {
    text.parse::<Ipv4Addr>().unwrap().into()
}

fn v6(text: &str) -> IpAddr {
    text.parse::<Ipv6Addr>().unwrap().into()
}

#[tokio::test]
async fn one_family_is_enough_whatever_the_other_returns() {
    let other = [
        Reply::Code(ResponseCode::Refused),
        Reply::Code(ResponseCode::ServFail),
        Reply::Code(ResponseCode::NotImp),
        Reply::Code(ResponseCode::FormErr),
        NXDOMAIN,
        NODATA,
        Reply::Nothing,
    ];
    for (number, other) in other.into_iter().enumerate() {
        let server =
            Server::start(move |_, kind| if kind == RecordType::A { Reply::Has("192.0.2.1") } else { other }).await;
        let begun = Instant::now();
        assert_eq!(find(&server.dns(), "a.example").await, Ok(vec![v4("192.0.2.1")]), "AAAA {number}");
        assert!(begun.elapsed() < Duration::from_secs(1), "AAAA {number}: {:?}", begun.elapsed());
        let server =
            Server::start(move |_, kind| if kind == RecordType::AAAA { Reply::Has("2001:db8::1") } else { other })
                .await;
        assert_eq!(find(&server.dns(), "a.example").await, Ok(vec![v6("2001:db8::1")]), "A {number}");
    }
}

#[tokio::test]
async fn both_families_and_aliases_are_found() {
    let server = Server::start(|_, kind| match kind {
        RecordType::A => Reply::Alias("b.example.", "192.0.2.1"),
        _ => Reply::Has("2001:db8::1"),
    })
    .await;
    let found = find(&server.dns(), "a.example").await.unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&v4("192.0.2.1")) && found.contains(&v6("2001:db8::1")), "{found:?}");
}

#[tokio::test]
async fn a_failed_lookup_says_why() {
    for (reply, error) in [
        (NXDOMAIN, LookupError::NoSuchName),
        (NODATA, LookupError::NoAddress),
        (Reply::Code(ResponseCode::ServFail), LookupError::Answered("SERVFAIL")),
        (Reply::Code(ResponseCode::Refused), LookupError::Answered("REFUSED")),
        (Reply::Nothing, LookupError::NoAnswer),
    ] {
        let server = Server::start(move |_, _| reply).await;
        let begun = Instant::now();
        assert_eq!(find(&server.dns(), "a.example").await, Err(error));
        assert!(begun.elapsed() < DEADLINE + Duration::from_secs(1));
    }
    let server = Server::start(|_, _| NXDOMAIN).await;
    assert_eq!(find(&server.dns(), &"x".repeat(64)).await, Err(LookupError::Invalid));
}

#[tokio::test]
async fn search_list_follows_ndots_and_continues_after_refusal() {
    let server = Server::start(|name, kind| match (name, kind) {
        ("hook.ns.svc.cluster.local.", _) => Reply::Code(ResponseCode::ServFail),
        ("hook.svc.cluster.local.", RecordType::A) => Reply::Has("10.0.0.1"),
        ("hook.svc.cluster.local." | "a.b.example.", RecordType::AAAA) => NODATA,
        ("a.b.example.", RecordType::A) => Reply::Has("192.0.2.1"),
        _ => NXDOMAIN,
    })
    .await;
    let search = ["ns.svc.cluster.local", "svc.cluster.local"];
    let dns = server.dns_with(&search, 2, Hosts::default());
    assert_eq!(find(&dns, "hook").await, Ok(vec![v4("10.0.0.1")]));
    assert!(!server.asked().iter().any(|asked| asked.starts_with("hook. ")), "{:?}", server.asked());
    server.asked.lock().unwrap().clear();
    // The name has as many dots as ndots, so it is tried unchanged first.
    assert_eq!(find(&dns, "a.b.example").await, Ok(vec![v4("192.0.2.1")]));
    assert!(server.asked().iter().all(|asked| asked.starts_with("a.b.example. ")), "{:?}", server.asked());
    server.asked.lock().unwrap().clear();
    assert_eq!(find(&dns, "hook.").await, Err(LookupError::NoSuchName));
    assert!(server.asked().iter().all(|asked| asked.starts_with("hook. ")), "{:?}", server.asked());
}

#[tokio::test]
async fn the_hosts_file_comes_first_also_for_one_family() {
    let server = Server::start(|_, _| Reply::Has("192.0.2.1")).await;
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf("127.0.0.9 receiver receiver.example\n".as_bytes()).unwrap();
    let dns = server.dns_with(&["ns.svc.cluster.local"], 5, hosts);
    for host in ["receiver", "receiver.example", "RECEIVER"] {
        assert_eq!(find(&dns, host).await, Ok(vec![v4("127.0.0.9")]), "{host}");
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn responses_are_cached_for_their_ttl() {
    let server = Server::start(|name, kind| match (name, kind) {
        ("short.example.", RecordType::A) => Reply::HasFor("192.0.2.1", 0),
        (_, RecordType::A) => Reply::Has("192.0.2.1"),
        _ => NODATA,
    })
    .await;
    let dns = server.dns();
    for host in ["long.example", "short.example"] {
        find(&dns, host).await.unwrap();
        find(&dns, host).await.unwrap();
    }
    let asked = |question: &str| server.asked().iter().filter(|asked| *asked == question).count();
    assert_eq!((asked("long.example. A"), asked("short.example. A")), (1, 2));
}

#[tokio::test]
async fn slow_lookups_delay_no_other() {
    let server =
        Server::start(|name, _| if name == "slow.example." { Reply::Nothing } else { Reply::Has("192.0.2.1") }).await;
    let dns = server.dns();
    let slow: Vec<_> = (0..600).map(|_| tokio::spawn(dns.resolve("slow.example".to_owned()))).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    find(&dns, "quick.example").await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    slow.iter().for_each(tokio::task::JoinHandle::abort);
}

#[test]
fn families_alternate_up_to_sixteen_addresses() {
    struct Many;
    impl Resolve for Many {
        fn resolve(&self, _: String) -> Resolving {
            let four = (1..=20).map(|last| IpAddr::from([10, 0, 0, last]));
            let found = four.chain([v6("2001:db8::1"), v6("2001:db8::2")]).collect();
            Box::pin(async move { Ok(found) })
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let found = runtime.block_on(endpoints(&Many, None, "many.example", 80)).unwrap();
    let families: String = found.iter().map(|at| if at.is_ipv6() { '6' } else { '4' }).collect();
    assert_eq!(families, "6464444444444444");
}

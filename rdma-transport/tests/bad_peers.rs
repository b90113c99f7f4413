//! Peers that break the protocol, on purpose or by age.

mod common;

use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::Hello;
use bb_proto::{FLAG_ERROR, FLAG_REPLY, Failure, Header, Kind, ServiceClass, meta};
use bb_runtime::{Executor, Rt};
use bb_transport::auth::{AuthError, Choice, Exchange, Method, Received, Step, StepFuture};
use bb_transport::link::{Frame, Limits, Link, LinkError};
use bb_transport::sim::{SimNet, SimNetConfig};
use bb_transport::{Address, CallError, Caller, Client, ClientConfig, Role, Server, ServerConfig};
use common::{Ask, Echo, identity, pool};

const SECOND: Duration = Duration::from_secs(1);

fn simulate<F: Future>(test: impl FnOnce(Rt, SimNet) -> F) {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    let net = SimNet::new(&rt, SimNetConfig::calm());
    executor.block_on(test(rt, net));
}

async fn serve(rt: &Rt, net: &SimNet, config: ServerConfig) -> Server {
    let listener = net.host(rt, "server").listen(&"server".into()).await.expect("free");
    let echo = Echo::new(rt, &config.pool);
    Server::start(rt, listener, echo, config)
}

fn server_config() -> ServerConfig {
    ServerConfig::new(identity(Role::Server, "server"), pool(64))
}

fn hello(change: impl FnOnce(&mut Hello)) -> Frame {
    let mut hello = Hello {
        version_min: 1,
        version_max: 1,
        role: 1,
        cluster: vec![1; 16],
        host: "tester".into(),
        auth_method: "none".into(),
        auth: Vec::new(),
        credit_bytes: 0,
        incarnation: 0,
    };
    change(&mut hello);
    let header = Header::request(Kind::Hello, ServiceClass::Client);
    Frame::new(header, meta::encode(&hello), Vec::new()).expect("fits")
}

async fn raw(rt: &Rt, net: &SimNet) -> Link {
    net.host(rt, "raw").connect(&"server".into()).await.expect("listens")
}

async fn introduced(rt: &Rt, net: &SimNet) -> (Link, Hello) {
    let mut link = raw(rt, net).await;
    link.send.send(vec![hello(|_| {})]).await.expect("open");
    let (header, body) = link.recv.head(Limits::HANDSHAKE).await.expect("an answer");
    assert_eq!(header.flags, FLAG_REPLY);
    (link, meta::decode(&body).expect("a Hello"))
}

#[test]
fn a_newer_version_settles_on_the_newest_common_one_and_a_foreign_one_is_refused() {
    simulate(|rt, net| async move {
        let server = serve(&rt, &net, server_config()).await;
        let mut link = raw(&rt, &net).await;
        link.send.send(vec![hello(|h| h.version_max = 9)]).await.unwrap();
        let (_, body) = link.recv.head(Limits::HANDSHAKE).await.unwrap();
        assert_eq!(meta::decode::<Hello>(&body).unwrap().version_max, 1);
        for (min, max) in [(2, 9), (0, 0)] {
            let mut link = raw(&rt, &net).await;
            let foreign = hello(|h| (h.version_min, h.version_max) = (min, max));
            link.send.send(vec![foreign]).await.unwrap();
            let (header, body) = link.recv.head(Limits::HANDSHAKE).await.unwrap();
            assert_eq!(header.flags, FLAG_REPLY | FLAG_ERROR);
            let failure: Failure = meta::decode(&body).unwrap();
            assert!(failure.detail.contains("version"), "{failure}");
            assert!(matches!(link.recv.head(Limits::HANDSHAKE).await, Err(LinkError::Closed)));
        }
        assert_eq!(server.stats().bad_peers, 2);
    });
}

#[test]
fn a_peer_that_overruns_its_window_is_closed() {
    simulate(|rt, net| async move {
        let mut config = server_config();
        config.window_bytes_max = 1 << 20;
        let server = serve(&rt, &net, config).await;
        let (mut link, hello) = introduced(&rt, &net).await;
        assert_eq!(hello.credit_bytes, 1 << 20);
        let pool = pool(8);
        let put = |id: u64, len: usize| {
            let ask = Ask { put_len: u32::try_from(len).unwrap(), delay_ms: 1000, ..Ask::new(id) };
            let mut buf = pool.try_alloc(len).unwrap();
            common::fill(&mut buf, id);
            let mut header = Header::request(Kind::PutBlock, ServiceClass::Client);
            header.request = id;
            Frame::new(header, ask.body(), vec![buf.freeze()]).unwrap()
        };
        link.send.send(vec![put(1, 600_000), put(2, 400_000)]).await.unwrap();
        rt.sleep(SECOND / 2).await;
        assert_eq!((server.stats().bad_peers, server.stats().running), (0, 2));
        link.send.send(vec![put(3, 60_000)]).await.unwrap();
        assert!(matches!(link.recv.head(Limits::ESTABLISHED).await, Err(LinkError::Closed)));
        assert_eq!(server.stats().bad_peers, 1);
        rt.sleep(SECOND).await;
        assert_eq!(server.stats().running, 0, "what had begun goes on to its end");
    });
}

#[test]
fn replies_and_introductions_are_no_requests() {
    simulate(|rt, net| async move {
        let server = serve(&rt, &net, server_config()).await;
        for (kind, flags) in [(Kind::Ping, FLAG_REPLY), (Kind::Hello, 0), (Kind::Auth, 0)] {
            let (mut link, _) = introduced(&rt, &net).await;
            let mut header = Header::request(kind, ServiceClass::Client);
            header.flags = flags;
            let frame = Frame::new(header, Vec::new(), Vec::new()).unwrap();
            link.send.send(vec![frame]).await.unwrap();
            assert!(matches!(link.recv.head(Limits::ESTABLISHED).await, Err(LinkError::Closed)));
        }
        assert_eq!((server.stats().bad_peers, server.stats().requests), (3, 0));
    });
}

/// A server that introduces itself well, answers the first request with what `answer` makes of
/// its header, and goes.
async fn odd_server(
    rt: &Rt,
    net: &SimNet,
    answer: impl Fn(Header) -> (Header, Vec<u8>, usize) + 'static,
) {
    let mut listener = net.host(rt, "odd").listen(&"odd".into()).await.expect("free");
    let rt2 = rt.clone();
    rt.spawn(async move {
        let pool = pool(4);
        while let Ok(mut link) = listener.accept().await {
            link.recv.head(Limits::HANDSHAKE).await.expect("Hello");
            let mut greeting = Header::request(Kind::Hello, ServiceClass::Client);
            greeting.flags = FLAG_REPLY;
            let body = meta::encode(&Hello {
                version_min: 1,
                version_max: 1,
                role: 2,
                cluster: vec![1; 16],
                host: "odd".into(),
                auth_method: "none".into(),
                auth: Vec::new(),
                credit_bytes: 1 << 20,
                incarnation: 1,
            });
            let greeting = Frame::new(greeting, body, Vec::new()).expect("fits");
            link.send.send(vec![greeting]).await.expect("open");
            if let Ok((request, _)) = link.recv.head(Limits::ESTABLISHED).await {
                link.recv.skip_payload().await.expect("simulated");
                let (header, body, payload) = answer(request);
                let payload = vec![pool.alloc(payload).await.freeze()];
                let frame = Frame::new(header, body, payload).expect("fits");
                // The client may close first.
                let _ = link.send.send(vec![frame]).await;
            }
            rt2.sleep(SECOND).await;
        }
    });
}

fn reply(request: Header) -> Header {
    Header {
        flags: FLAG_REPLY,
        request: request.request,
        ..Header::request(request.kind, request.class)
    }
}

#[test]
fn answers_that_make_no_sense_cost_the_connection_and_harm_nothing() {
    type Odd = fn(Header) -> (Header, Vec<u8>, usize);
    let odd: [Odd; 4] = [
        |request| (Header { kind: Kind::Commit, ..reply(request) }, Vec::new(), 0),
        |request| (Header { flags: 0, ..reply(request) }, Vec::new(), 0),
        |request| (reply(request), Vec::new(), 5001),
        |request| (Header { flags: FLAG_REPLY | FLAG_ERROR, ..reply(request) }, vec![0xFF; 9], 0),
    ];
    for odd in odd {
        simulate(|rt, net| async move {
            odd_server(&rt, &net, odd).await;
            let pool = pool(8);
            let config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
            let client = Client::new(&rt, net.host(&rt, "client"), config);
            let ask = Ask { get_len: 5000, ..Ask::new(1) };
            let call = client.call(&"odd".into(), ask.request(&pool, SECOND).unwrap()).await;
            assert!(matches!(call, Err(CallError::Disconnected { maybe_sent: true })), "{call:?}");
            rt.sleep(SECOND).await;
            assert_eq!(pool.stats().used_bytes, 0);
        });
    }
}

/// Both sides count down from `rounds`; `secret` must match.
struct Countdown {
    rounds: u8,
    secret: u8,
}

impl Method for Countdown {
    fn name(&self) -> &'static str {
        "countdown"
    }
    fn initiate(&self) -> Box<dyn Exchange> {
        Box::new(Counting { left: self.rounds, secret: self.secret, asks: true })
    }
    fn respond(&self) -> Box<dyn Exchange> {
        Box::new(Counting { left: self.rounds, secret: self.secret, asks: false })
    }
}

struct Counting {
    left: u8,
    secret: u8,
    asks: bool,
}

impl Exchange for Counting {
    fn step<'a>(&'a mut self, received: Received<'a>) -> StepFuture<'a> {
        Box::pin(async move {
            if !received.bytes.is_empty() && received.bytes != [self.secret] {
                return Err(AuthError::Refused("wrong secret".into()));
            }
            if self.left == 0 {
                return Ok(Step::Done(if self.asks { Vec::new() } else { vec![self.secret] }));
            }
            self.left -= 1;
            Ok(Step::Continue(vec![self.secret]))
        })
    }
}

async fn call_with_auth(
    rt: &Rt,
    net: &SimNet,
    to: &Address,
    secret: u8,
    rounds: u8,
) -> Result<(), CallError> {
    let pool = pool(4);
    let mut identity = identity(Role::Client, "client");
    identity.auth = Rc::new(Countdown { rounds, secret });
    let config = ClientConfig::new(identity, pool.clone());
    let client = Client::new(rt, net.host(rt, "client"), config);
    client.call(to, Ask::new(1).request(&pool, 5 * SECOND).expect("room")).await.map(|_| ())
}

#[test]
fn authentication_can_take_several_steps_and_fail() {
    simulate(|rt, net| async move {
        let mut config = server_config();
        config.identity.auth = Rc::new(Countdown { rounds: 3, secret: 7 });
        let server = serve(&rt, &net, config).await;
        let to = server.address().clone();
        // The initiator speaks first: it takes one step more.
        call_with_auth(&rt, &net, &to, 7, 4).await.expect("the right secret");
        for (secret, rounds) in [(8, 4), (7, 9)] {
            let outcome = call_with_auth(&rt, &net, &to, secret, rounds).await;
            assert!(matches!(outcome, Err(CallError::Rejected(_))), "{outcome:?}");
        }
        let pool = pool(4);
        let config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
        let client = Client::new(&rt, net.host(&rt, "client"), config);
        match client.call(&to, Ask::new(1).request(&pool, SECOND).unwrap()).await {
            Err(CallError::Rejected(why)) => assert!(why.contains("countdown"), "{why}"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_client_without_an_opinion_takes_the_servers_method_and_a_server_has_to_have_one() {
    simulate(|rt, net| async move {
        let server = serve(&rt, &net, server_config()).await;
        let attempt = async |role| {
            let pool = pool(4);
            let mut identity = identity(role, "peer");
            identity.auth = Choice::default().method();
            let config = ClientConfig::new(identity, pool.clone());
            let client = Client::new(&rt, net.host(&rt, "peer"), config);
            let request = Ask::new(1).request(&pool, 5 * SECOND).expect("room");
            client.call(server.address(), request).await.map(|_| ())
        };
        attempt(Role::Client).await.expect("goes on with none");
        let refused = attempt(Role::Server).await;
        assert!(matches!(refused, Err(CallError::Rejected(_))), "{refused:?}");
    });
}

/// Its proofs cannot be checked just now.
struct Later;

impl Method for Later {
    fn name(&self) -> &'static str {
        "later"
    }
    fn initiate(&self) -> Box<dyn Exchange> {
        Box::new(Counting { left: 1, secret: 1, asks: true })
    }
    fn respond(&self) -> Box<dyn Exchange> {
        Box::new(Self)
    }
}

impl Exchange for Later {
    fn step<'a>(&'a mut self, _received: Received<'a>) -> StepFuture<'a> {
        Box::pin(std::future::ready(Err(AuthError::NotNow("munged is being started".into()))))
    }
}

#[test]
fn a_server_that_cannot_check_proofs_just_now_is_asked_again() {
    simulate(|rt, net| async move {
        let mut config = server_config();
        config.identity.auth = Rc::new(Later);
        let server = serve(&rt, &net, config).await;
        let pool = pool(4);
        let mut identity = identity(Role::Client, "client");
        identity.auth = Rc::new(Later);
        let client =
            Client::new(&rt, net.host(&rt, "client"), ClientConfig::new(identity, pool.clone()));
        let request = Ask::new(1).request(&pool, 5 * SECOND).expect("room");
        let outcome = client.call(server.address(), request).await.map(|_| ());
        let again = matches!(outcome, Err(CallError::Disconnected { maybe_sent: false }));
        assert!(again, "{outcome:?}");
    });
}

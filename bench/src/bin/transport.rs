//! Round trips and throughput of the transport over TCP loopback, and of plain blocking sockets
//! in the same run: only the two beside each other say anything on a shared machine.
//!
//! Both sides: a client thread and a server thread. Throughput: 1 MiB requests with small answers,
//! eight under way. Median of the rounds, which take turns.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use bb_proto::{Kind, ServiceClass};
use bb_runtime::uring::{UringOptions, executor};
use bb_runtime::{Buf, BufPool, Rt};
use bb_transport::auth::NoAuth;
use bb_transport::{
    Address, Caller, Client, ClientConfig, HandleFuture, Identity, Incoming, Outgoing, Response,
    Role, Server, ServerConfig, Service, Tcp, Vitals,
};
use futures_channel::oneshot;

const ROUNDS: usize = 7;
const ROUND_TRIPS: u32 = 5_000;
const PUTS: u32 = 1_000;
const UNDER_WAY: u32 = 8;
const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);
const HEADER: usize = 64;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Answers every request with as many bytes of body as it had, and no payload.
struct Echo;

impl Service for Echo {
    fn handle(self: Rc<Self>, request: Incoming) -> HandleFuture {
        Box::pin(async move { Ok(Response::body(request.body)) })
    }

    fn vitals(&self, _kind: Kind, _target: u32) -> Vitals {
        Vitals::default()
    }
}

fn identity(role: Role) -> Identity {
    Identity {
        role,
        host: "bench".into(),
        cluster: Vec::new(),
        incarnation: 0,
        auth: NoAuth::shared(),
    }
}

fn serve(tell: &mpsc::Sender<String>, end: oneshot::Receiver<()>) -> Fallible<()> {
    let (executor, uring) = executor(&UringOptions::for_reactor())?;
    let rt = executor.rt();
    executor.block_on(async {
        let listener = Tcp::network(&uring).listen(&"127.0.0.1:0".into()).await?;
        let config = ServerConfig::new(identity(Role::Server), BufPool::new(64 * MIB, false)?);
        let server = Server::start(&rt, listener, Rc::new(Echo), config);
        tell.send(server.address().0.to_string())?;
        // The other end was dropped: that is the end, too.
        let _ = end.await;
        server.stop(Duration::from_secs(1)).await;
        Ok(())
    })
}

/// One figure of each side, per round.
#[derive(Default)]
struct Rounds {
    ours: Vec<f64>,
    raw: Vec<f64>,
}

impl Rounds {
    fn print(&mut self, what: &str, unit: &str) {
        self.ours.sort_by(f64::total_cmp);
        self.raw.sort_by(f64::total_cmp);
        let (ours, raw) = (self.ours[ROUNDS / 2], self.raw[ROUNDS / 2]);
        println!("{what:<34} {ours:>9.2} {raw:>9.2} {unit:<6} {:>6.2}", ours / raw);
    }
}

fn request(body: usize) -> Outgoing {
    Outgoing::new(Kind::Ping, ServiceClass::Client, DEADLINE, vec![7; body])
}

/// Microseconds of a round trip with `bytes` of body each way.
async fn round_trip(rt: &Rt, client: &Client, to: &Address, bytes: usize) -> Fallible<f64> {
    client.call(to, request(bytes)).await?;
    let start = rt.now();
    for _ in 0..ROUND_TRIPS {
        client.call(to, request(bytes)).await?;
    }
    Ok(rt.now().since(start).as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS))
}

/// GB/s of 1 MiB payloads.
async fn puts(rt: &Rt, client: &Client, to: &Address, payload: &Buf) -> Fallible<f64> {
    let start = rt.now();
    let workers: Vec<_> = (0..UNDER_WAY)
        .map(|_| {
            let (client, to, payload) = (client.clone(), to.clone(), payload.clone());
            rt.spawn(async move {
                for _ in 0..PUTS / UNDER_WAY {
                    client.call(&to, request(0).with_payload(vec![payload.clone()])).await?;
                }
                Ok::<(), bb_transport::CallError>(())
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    Ok(f64::from(PUTS) * MIB as f64 / rt.now().since(start).as_secs_f64() / 1e9)
}

/// What the plain server does: reads `size` bytes as often as told, answers `answer` bytes each.
fn raw_server(listener: &TcpListener) -> Fallible<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; MIB + HEADER];
    let mut plan = [0; 24];
    while stream.read_exact(&mut plan).is_ok() {
        let word = |at: usize| -> Fallible<usize> {
            Ok(usize::try_from(u64::from_le_bytes(plan[at..at + 8].try_into()?))?)
        };
        let (count, size, answer) = (word(0)?, word(8)?, word(16)?);
        for _ in 0..count {
            stream.read_exact(&mut buffer[..size])?;
            stream.write_all(&buffer[..answer])?;
        }
    }
    Ok(())
}

/// Seconds for `count` requests of `size` bytes with answers of `answer`, `under_way` at a time.
fn raw_run(
    rt: &Rt,
    stream: &mut TcpStream,
    (count, size, answer): (u32, usize, usize),
    under_way: u32,
) -> Fallible<f64> {
    let mut plan = u64::from(count).to_le_bytes().to_vec();
    plan.extend((size as u64).to_le_bytes());
    plan.extend((answer as u64).to_le_bytes());
    stream.write_all(&plan)?;
    let out = vec![7; size];
    let mut back = vec![0; answer];
    let start = rt.now();
    for sent in 0..count {
        if sent >= under_way {
            stream.read_exact(&mut back)?;
        }
        stream.write_all(&out)?;
    }
    for _ in 0..under_way.min(count) {
        stream.read_exact(&mut back)?;
    }
    Ok(rt.now().since(start).as_secs_f64())
}

fn measure(address: &str, mut raw: TcpStream) -> Fallible<()> {
    let (executor, uring) = executor(&UringOptions::for_reactor())?;
    let rt = executor.rt();
    let pool = BufPool::new(16 * MIB, false)?;
    let config = ClientConfig::new(identity(Role::Client), pool.clone());
    let client = Client::new(&rt, Tcp::network(&uring), config);
    let to = Address::from(address);
    let payload = pool.try_alloc_zeroed(MIB).ok_or("no room")?.freeze();
    raw.set_nodelay(true)?;
    let mut figures: [Rounds; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (at, bytes) in [(0, 64), (1, 4096)] {
            let ours = executor.block_on(round_trip(&rt, &client, &to, bytes))?;
            figures[at].ours.push(ours);
            let size = bytes + HEADER;
            let seconds = raw_run(&rt, &mut raw, (ROUND_TRIPS, size, size), 1)?;
            figures[at].raw.push(seconds * 1e6 / f64::from(ROUND_TRIPS));
        }
        figures[2].ours.push(executor.block_on(puts(&rt, &client, &to, &payload))?);
        let seconds = raw_run(&rt, &mut raw, (PUTS, MIB + HEADER, HEADER), UNDER_WAY)?;
        figures[2].raw.push(f64::from(PUTS) * MIB as f64 / seconds / 1e9);
    }
    println!("{:<34} {:>9} {:>9} {:<6} {:>6}", "TCP loopback", "transport", "sockets", "", "ratio");
    figures[0].print("round trip, 64 B body", "us");
    figures[1].print("round trip, 4 KiB body", "us");
    figures[2].print("1 MiB puts, 8 under way", "GB/s");
    executor.block_on(async { client.close() });
    Ok(())
}

fn main() -> Fallible<()> {
    let (tell, told) = mpsc::channel();
    let (finish, finished) = oneshot::channel();
    let server = std::thread::Builder::new().spawn(move || {
        if let Err(error) = serve(&tell, finished) {
            eprintln!("server: {error}");
        }
    })?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let raw_address = listener.local_addr()?;
    let raw = std::thread::Builder::new().spawn(move || {
        if let Err(error) = raw_server(&listener) {
            eprintln!("plain server: {error}");
        }
    })?;
    measure(&told.recv()?, TcpStream::connect(raw_address)?)?;
    drop(finish);
    for thread in [server, raw] {
        thread.join().map_err(|_| "a thread panicked")?;
    }
    Ok(())
}

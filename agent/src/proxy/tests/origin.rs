//! Diallers that no port names: the proxy of the host they came from says who they are.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use faultbed_common::proxy_spec::{Cut, HostDesk};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};

use super::{
    ground::{Ground, HERE, THERE, begin_from, in_network, ip},
    handover::Stop,
    harness::{Lab, PATIENCE, cut, eventually, fault, finish},
};

/// Where both hosts answer.
const PORT: u16 = 7476;
/// A connection of unknown origin is reset after this, and not much later.
const HELD_MAX: Duration = Duration::from_secs(2);

/// A CA of a lab.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "test");
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(parameters, key).unwrap())
    }

    /// Key and certificate of whoever this URI names, as hosts have them: a client's.
    fn sign(&self, uri: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        (key.serialize_pem(), certificate.pem())
    }

    /// Puts what `uri` names into the directory of an agent.
    fn equip(&self, agent_dir: &Path, uri: &str) {
        let dir = agent_dir.join("identity");
        std::fs::create_dir_all(&dir).unwrap();
        let (key, certificate) = self.sign(uri);
        std::fs::write(dir.join("key.pem"), key).unwrap();
        std::fs::write(dir.join("ca.pem"), self.0.pem()).unwrap();
        std::fs::write(dir.join("cert.pem"), certificate).unwrap();
    }
}

fn uri(host: &str) -> String {
    format!("faultbed://demo/host/{host}")
}

/// The lab of h2, here, with y; and the proxy of h1, there, with nothing to forward.
struct Two {
    ground: Ground,
    here: Lab,
    there: Lab,
    to: SocketAddr,
}

impl Two {
    fn prepare(family: usize) -> Self {
        let ground = Ground::new();
        let (mut here, mut there) = (Lab::prepare(&["y"]), Lab::prepare(&[]));
        let to = SocketAddr::new(ip(HERE[family]), here.listen("y").port());
        here.file.spec.listeners[0].listen = to;
        for (lab, own, other, name) in [
            (&mut here, HERE[family], THERE[family], "h1"),
            (&mut there, THERE[family], HERE[family], "h2"),
        ] {
            lab.file.lab = Some("demo".parse().unwrap());
            lab.file.spec.desk = Some(SocketAddr::new(ip(own), PORT));
            let desk = HostDesk { host: name.parse().unwrap(), port: Some(PORT) };
            lab.file.spec.hosts.insert(ip(other), desk);
        }
        Self { ground, here, there, to }
    }

    fn run(&mut self) {
        self.here.run();
        let there = &mut self.there;
        self.ground.there(|| there.run());
        let desk = self.there.file.spec.desk.unwrap();
        eventually("the other host answers", || TcpStream::connect(desk).is_ok());
    }

    /// A process on the other host that dials y from any port, as node or client.
    fn dialler(&self, node: Option<&str>) -> Dialler {
        let (to, port) = (self.to.ip(), self.to.port());
        // The shell cannot write a numeric address of the newer protocol into /dev/tcp with brackets.
        let script = format!("exec 3<>/dev/tcp/{to}/{port}; echo up; cat <&3 & cat >&3");
        self.script(node, &script)
    }

    /// A shell on the other host.
    fn script(&self, node: Option<&str>, script: &str) -> Dialler {
        self.ground.there(|| {
            let mut command = Command::new("bash");
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            // What the shell leaves behind goes with it, and keeps no output of the test open.
            command.env_remove("FAULTBED_NODE").stderr(Stdio::null()).process_group(0);
            if let Some(node) = node {
                command.env("FAULTBED_NODE", format!("demo/{node}/1"));
            }
            Dialler(command.spawn().unwrap())
        })
    }
}

/// A process that dials; it ends with its test.
struct Dialler(Child);

impl Dialler {
    fn say(&mut self, text: &str) {
        self.0.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits until it is connected, as its kernel sees it.
    fn is_up(&mut self) -> BufReader<std::process::ChildStdout> {
        let mut output = BufReader::new(self.0.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        output
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            let _ended = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ended = self.0.wait();
    }
}

fn accept(lab: &Lab) -> TcpStream {
    let (far, _) = lab.server("y").accept().unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    far
}

fn hears(mut far: &TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, text.as_bytes());
}

#[test]
fn a_node_that_no_port_names_is_named_by_its_host_and_cut() {
    if !in_network("origin::a_node_that_no_port_names_is_named_by_its_host_and_cut") {
        return;
    }
    for family in 0..2 {
        let mut two = Two::prepare(family);
        let authority = Authority::new();
        authority.equip(two.here.agent_dir(), &uri("h2"));
        authority.equip(two.there.agent_dir(), &uri("h1"));
        two.run();
        // Without a rule nobody waits; and it is asked all the same, for later.
        let mut node = two.dialler(Some("x"));
        node.say("before\n");
        let far = accept(&two.here);
        hears(&far, "before\n");
        eventually("its host has said whose it is", || two.here.report().unnamed_nodes);
        two.here.inject("split", cut(Cut::Packets), &["x>y", "y>x"]);
        assert_eq!(two.here.apply().faults[&fault("split")].why, None);
        node.say("during\n");
        eventually("the cut meets it", || two.here.evidence("split", "x>y").connections == 1);
        // New ones are accepted by the kernel, held, named and never passed on; a client's are.
        let mut again = two.dialler(Some("x"));
        let _output = again.is_up();
        again.say("again\n");
        let mut client = two.dialler(None);
        client.say("hello\n");
        hears(&accept(&two.here), "hello\n");
        eventually("it is known as x's", || {
            two.here.evidence("split", "x>y").attempts_refused == 1
        });
        two.here.heal("split");
        hears(&far, "during\n");
        hears(&accept(&two.here), "again\n");
        assert_eq!(two.here.report().report.unknown_reset, 0);
    }
}

#[test]
fn without_an_answer_connections_of_another_host_are_held_for_a_while_and_reset() {
    if !in_network(
        "origin::without_an_answer_connections_of_another_host_are_held_for_a_while_and_reset",
    ) {
        return;
    }
    let mut two = Two::prepare(0);
    let (authority, foreign) = (Authority::new(), Authority::new());
    authority.equip(two.here.agent_dir(), &uri("h2"));
    two.here.inject("split", cut(Cut::Packets), &["x>y", "y>x"]);
    // Nobody is there, then one of another CA, one of another lab, and another host.
    let name = [
        None,
        Some((&foreign, uri("h1"))),
        Some((&authority, "faultbed://other/host/h1".to_owned())),
        Some((&authority, uri("h3"))),
        Some((&authority, "faultbed://demo/user/h1/admin".to_owned())),
    ];
    two.here.run();
    for (round, shown) in (1..).zip(name) {
        if let Some((by, uri)) = shown {
            by.equip(two.there.agent_dir(), &uri);
            let there = &mut two.there;
            two.ground.there(|| there.run());
        }
        let began = Instant::now();
        let from = SocketAddr::new(ip(THERE[0]), 0);
        let mut near = finish(two.ground.begin(from, two.to).unwrap(), PATIENCE).unwrap();
        let error = near.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(began.elapsed() > HELD_MAX / 2, "it might still have become known");
        eventually("it is counted", || two.here.report().report.unknown_reset == round);
        two.there.halt();
    }
}

/// Dials y as a client until told to stop, and waits each time until y has answered. Gives how long the
/// slowest took, in microseconds.
fn dial_on(ground: &Ground, to: SocketAddr, stop: &AtomicBool, dialled: &AtomicU64) -> u64 {
    let from = SocketAddr::new(ip(THERE[0]), 0);
    ground.there(|| {
        let mut slowest = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut near = finish(begin_from(from, to).unwrap(), PATIENCE).unwrap();
            let began = Instant::now();
            near.write_all(b"c").unwrap();
            near.read_exact(&mut [0]).expect("it is known as a client before it is given up");
            slowest = slowest.max(u64::try_from(began.elapsed().as_micros()).unwrap());
            dialled.fetch_add(1, Ordering::Relaxed);
        }
        slowest
    })
}

#[test]
fn nobody_waits_for_long_or_is_taken_for_another_while_both_proxies_are_replaced() {
    const HAND_OVERS: u32 = 16;
    if !in_network(
        "origin::nobody_waits_for_long_or_is_taken_for_another_while_both_proxies_are_replaced",
    ) {
        return;
    }
    let mut two = Two::prepare(0);
    let authority = Authority::new();
    authority.equip(two.here.agent_dir(), &uri("h2"));
    authority.equip(two.there.agent_dir(), &uri("h1"));
    two.run();
    two.here.inject("split", cut(Cut::Packets), &["x>y", "y>x"]);
    two.here.apply();
    // Connections of x, one after the other, of which none may get through.
    let (address, port) = (two.to.ip(), two.to.port());
    let dial = format!("exec {{fd}}<>/dev/tcp/{address}/{port}; echo x >&$fd; sleep 0.05");
    let _x = two.script(Some("x"), &format!("for i in {{1..60}}; do {dial}; done; sleep 60"));
    let (stop, over, dialled) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let (stop, over, dialled) = (&stop, &over, &dialled);
    let server = two.here.server("y").try_clone().unwrap();
    server.set_nonblocking(true).unwrap();
    let Two { ground, here, there, to } = &mut two;
    let (ground, to) = (&*ground, *to);
    let slowest = thread::scope(|scope| {
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let Ok((mut far, _)) = server.accept() else {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                };
                let mut who = [0];
                far.set_nonblocking(false).unwrap();
                far.read_exact(&mut who).unwrap();
                assert_eq!(who, *b"c", "a connection of x got through");
                far.write_all(b"y").unwrap();
            }
        });
        let dial = || scope.spawn(move || dial_on(ground, to, stop, dialled));
        let diallers = [dial(), dial(), dial()];
        let _whatever_happens = (Stop(stop), Stop(over));
        for round in 0..HAND_OVERS {
            let before = dialled.load(Ordering::Relaxed);
            eventually("they are known", || dialled.load(Ordering::Relaxed) > before + 5);
            if round % 4 == 3 { here.hand_over() } else { ground.there(|| there.hand_over()) }
        }
        stop.store(true, Ordering::Relaxed);
        diallers.map(|dialler| dialler.join().unwrap()).into_iter().max()
    });
    let slowest = slowest.map(Duration::from_micros).unwrap();
    println!("{dialled:?} were known over {HAND_OVERS} hand-overs, the slowest after {slowest:?}");
    assert!(slowest < HELD_MAX, "it would have been given up: {slowest:?}");
    assert_eq!(here.report().report.unknown_reset, 0);
    assert!(here.evidence("split", "x>y").connections > 0, "x was there");
}

#[test]
fn what_dials_from_no_host_of_the_lab_is_a_client_at_once() {
    if !in_network("origin::what_dials_from_no_host_of_the_lab_is_a_client_at_once") {
        return;
    }
    let mut two = Two::prepare(0);
    two.ground.add_addresses();
    two.here.inject("split", cut(Cut::Packets), &["x>y", "y>x"]);
    two.here.run();
    let from = SocketAddr::new(ip("10.77.0.11"), 0);
    let began = Instant::now();
    let mut near = finish(two.ground.begin(from, two.to).unwrap(), PATIENCE).unwrap();
    near.write_all(b"hello").unwrap();
    hears(&accept(&two.here), "hello");
    assert!(began.elapsed() < HELD_MAX / 2);
}

#[test]
fn a_host_learns_of_its_own_connections_only_and_nobody_else_learns_anything() {
    if !in_network(
        "origin::a_host_learns_of_its_own_connections_only_and_nobody_else_learns_anything",
    ) {
        return;
    }
    let mut two = Two::prepare(0);
    let authority = Authority::new();
    authority.equip(two.here.agent_dir(), &uri("h2"));
    authority.equip(two.there.agent_dir(), &uri("h1"));
    let desk = HostDesk { host: "h3".parse().unwrap(), port: None };
    two.here.file.spec.hosts.insert(ip("10.77.0.13"), desk);
    two.run();
    // A connection that y's host makes to the host there.
    let listener = two.ground.there(|| std::net::TcpListener::bind((THERE[0], 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let near = TcpStream::connect(to).unwrap();
    let ask = |ours: SocketAddr| {
        let theirs = near.local_addr().unwrap();
        format!("{{\"theirs\":\"{theirs}\",\"ours\":\"{ours}\",\"urgent\":true}}\n")
    };
    let elsewhere: SocketAddr = (ip("10.77.0.13"), to.port()).into();
    let desk = two.here.file.spec.desk.unwrap();
    let told = |who: (String, String), ca: &Authority, text: &str| {
        two.ground.there(|| talk(desk, who, ca, text))
    };
    eventually("it answers", || told(authority.sign(&uri("h1")), &authority, &ask(to)).is_ok());
    let h1 = || authority.sign(&uri("h1"));
    assert_eq!(told(h1(), &authority, &ask(to)).unwrap(), "\"clients\"\n");
    assert_eq!(told(h1(), &authority, &ask(elsewhere)).unwrap(), "\"unknown\"\n");
    let h3 = authority.sign(&uri("h3"));
    assert_eq!(told(h3, &authority, &ask(to)).unwrap(), "\"unknown\"\n");
    for text in ["{}\n".to_owned(), "x".repeat(600), "\n".repeat(5)] {
        assert!(told(h1(), &authority, &text).is_err(), "{text:?}");
    }
    for name in ["faultbed://demo/user/eve/admin", "faultbed://other/host/h1", "x:y"] {
        assert!(told(authority.sign(name), &authority, &ask(to)).is_err(), "{name}");
    }
    let foreign = Authority::new();
    assert!(told(foreign.sign(&uri("h1")), &authority, &ask(to)).is_err());
}

/// Says something to who answers, with a certificate; the first line of the answer.
fn talk(
    desk: SocketAddr,
    (key, certificate): (String, String),
    ca: &Authority,
    text: &str,
) -> io::Result<String> {
    let dir = tempfile::tempdir()?;
    let identity = dir.path().join("identity");
    std::fs::create_dir(&identity)?;
    std::fs::write(identity.join("key.pem"), &key)?;
    std::fs::write(identity.join("cert.pem"), &certificate)?;
    std::fs::write(identity.join("ca.pem"), ca.0.pem())?;
    let sides = crate::proxy::origin::load_for_test(&identity)?;
    let name = rustls::pki_types::ServerName::IpAddress(desk.ip().into());
    let connection = rustls::ClientConnection::new(sides, name).map_err(io::Error::other)?;
    let stream = TcpStream::connect(desk)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = rustls::StreamOwned::new(connection, stream);
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    match BufReader::new(&mut stream).read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

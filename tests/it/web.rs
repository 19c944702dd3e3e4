//! Programs at an https address, from a server with a CA of its own, which hosts know by their setting.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use faultbed_common::{program::Content, report::NodeState};
use faultbed_tests::lab::{Lab, find};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Serves its working directory over TLS, and prints its port.
const SERVER: &str = r#"
import http.server, ssl, sys
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
server.socket = tls.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

struct Server {
    process: Child,
    url: String,
}

impl Server {
    /// Serves etcd, with a certificate of the CA that it writes to `ca.pem`.
    fn start(lab: &Lab) -> Self {
        let at = |name: &str| lab.home().join(name);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = || KeyPair::generate().expect("make key");
        let ca = CertifiedIssuer::self_signed(params, key()).expect("make CA");
        fs::write(at("ca.pem"), ca.pem()).expect("write CA");
        let own = key();
        let names = CertificateParams::new(["localhost".to_owned()]).expect("name it");
        let certificate = names.signed_by(&own, &ca).expect("sign").pem();
        fs::write(at("server.pem"), certificate + &own.serialize_pem()).expect("write key");
        fs::create_dir(at("www")).expect("make directory");
        std::os::unix::fs::symlink("/usr/bin/etcd", at("www/etcd")).expect("link etcd");
        let mut process = Command::new("python3")
            .args(["-c", SERVER])
            .arg(at("server.pem"))
            .current_dir(at("www"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(at("server.log")).expect("make log"))
            .spawn()
            .expect("run python3 (deploy/setup.sh installs it)");
        let mut port = String::new();
        let said = process.stdout.take().expect("its output");
        BufReader::new(said).read_line(&mut port).expect("read its port");
        Self { process, url: format!("https://localhost:{}/etcd", port.trim()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_host_fetches_a_program_by_its_hash_and_refuses_another() {
    let lab = Lab::new("web");
    let server = Server::start(&lab);
    let up = lab
        .command(&["up", "-d", "--hosts", "1"])
        .env("FAULTBED_FETCH_CA", lab.home().join("ca.pem"))
        .output()
        .expect("run faultbed");
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let mut file = File::open("/usr/bin/etcd").expect("open etcd (deploy/setup.sh installs it)");
    let sha256 = Content::read(&mut file).expect("hash etcd").sha256;
    let path = format!("{}#sha256={sha256}", server.url);

    let text =
        format!("[cluster.kv]\nblueprint = \"etcd\"\netcd.count = 1\netcd.path = \"{path}\"\n");
    let file = lab.write("web.toml", &text).display().to_string();
    assert!(lab.ok(&["plan", "-f", &file]).contains(&path));
    lab.ok(&["apply", "-f", &file]);
    let node = lab.node("kv-1");
    let binary = node.binary.expect("its program");
    assert_eq!((binary.path, binary.sha256), (path.clone(), sha256.to_string()));
    let exe = fs::read_link(format!("/proc/{}/exe", node.pid.expect("it runs"))).expect("exe");
    assert!(exe.ends_with(format!("bins/{sha256}/etcd")), "{}", exe.display());

    // By another hash nothing of it runs, and the node says which file is there.
    let wrong = format!("{}#sha256={}", server.url, "0".repeat(64));
    lab.ok(&[
        "start",
        "cluster",
        "--name",
        "bad",
        "--etcd.count",
        "1",
        "--etcd.path",
        &wrong,
        "--no-wait",
    ]);
    let why = lab.wait("the node says why it does not start", |status| {
        let bad = find(status, "bad-1");
        assert_ne!(bad.observed, NodeState::Ready);
        bad.why.clone().filter(|why| why.contains("has SHA-256"))
    });
    assert!(why.contains(&sha256.to_string()) && why.contains("write the hash"), "{why}");
    assert_eq!(lab.node("kv-1").pid, node.pid);
    for (path, why) in [
        (server.url.clone(), "does not say what the file holds"),
        (path.replace("https://", "http://"), "but by https"),
    ] {
        let refused = lab.run(&["start", "cluster", "--name", "c", "--etcd.path", &path]);
        assert!(refused.code == 2 && refused.stderr.contains(why), "{}", refused.stderr);
    }
}

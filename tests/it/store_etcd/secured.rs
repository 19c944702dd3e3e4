//! A lab whose etcd wants TLS, a client certificate, and a user with a password.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use faultbed_common::status::HostState;
use faultbed_tests::{
    lab::{Lab, PATIENCE, signal},
    wait::wait_for,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::Signal;

/// An etcd that lets nobody in without all of it.
struct Secured {
    child: Child,
    url: String,
    dir: PathBuf,
}

/// A key and a certificate of `issuer` for an address, as files `NAME.key` and `NAME.pem`.
fn certify(lab: &Lab, name: &str, issuer: &CertifiedIssuer<'_, KeyPair>) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    lab.write(&format!("{name}.pem"), &certificate.pem());
    lab.write(&format!("{name}.key"), &key.serialize_pem());
}

fn authority(lab: &Lab, name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
    lab.write(&format!("{name}.pem"), &issuer.pem());
    issuer
}

impl Secured {
    fn start(lab: &Lab) -> Self {
        let port = || {
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            free.local_addr().expect("address").port()
        };
        let url = format!("https://127.0.0.1:{}", port());
        let peer = format!("http://127.0.0.1:{}", port());
        let file = |name: &str| lab.home().join(name);
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(file("etcd"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--client-cert-auth"])
            .arg("--trusted-ca-file")
            .arg(file("ca.pem"))
            .arg("--cert-file")
            .arg(file("server.pem"))
            .arg("--key-file")
            .arg(file("server.key"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run etcd (deploy/setup.sh installs it)");
        let etcd = Self { child, url, dir: lab.home().to_owned() };
        wait_for("etcd serves", PATIENCE, || etcd.ctl(&["get", "ready"]));
        for args in [
            ["user", "add", "root:secret"].as_slice(),
            &["user", "grant-role", "root", "root"],
            &["user", "add", "fb:open"],
            &["role", "add", "lab"],
            &["role", "grant-permission", "lab", "--prefix=true", "readwrite", "/faultbed/v1/"],
            &["user", "grant-role", "fb", "lab"],
            &["auth", "enable"],
        ] {
            etcd.ctl(args).expect("etcdctl");
        }
        etcd
    }

    fn ctl(&self, args: &[&str]) -> Result<(), String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.url))
            .args(["--cacert=ca.pem", "--cert=client.pem", "--key=client.key"])
            .args(args)
            .current_dir(&self.dir)
            .output()
            .expect("run etcdctl");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_etcd_with_certificates_and_passwords_opens_to_who_has_them_and_says_what_is_missing() {
    let lab = Lab::new("locked");
    let (ca, _) = (authority(&lab, "ca"), authority(&lab, "other"));
    certify(&lab, "server", &ca);
    certify(&lab, "client", &ca);
    lab.write("password", "open\n");
    lab.write("wrong", "shut\n");
    let etcd = Secured::start(&lab);
    let store = format!("etcd={}", etcd.url);
    let up = ["up", "-d", "--hosts", "1", "--store", &store];
    let with = |flags: &[&str]| lab.run(&[up.as_slice(), flags].concat());
    let certificate = ["--etcd-cert", "client.pem", "--etcd-key", "client.key"];
    let user = ["--etcd-user", "fb", "--etcd-password-file"];
    let file = |name: &str| lab.home().join(name).display().to_string();

    let refused = |flags: &[&str], says: &str| {
        let refused = with(flags);
        assert_ne!(refused.code, 0);
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
    };
    let says = format!("certificate is not of the CA in --etcd-ca {}", file("other.pem"));
    refused(&[&certificate[..], &["--etcd-ca", "other.pem"]].concat(), &says);
    refused(&["--etcd-ca", "ca.pem"], "give --etcd-cert and --etcd-key");
    let opened = [&certificate[..], &["--etcd-ca", "ca.pem"]].concat();
    let wrong = [&opened[..], &user, &["wrong"]].concat();
    let says = format!("user fb with the password of --etcd-password-file {}", file("wrong"));
    refused(&wrong, &says);
    refused(&wrong, "etcdctl user passwd fb");

    let brought = with(&[&opened[..], &user, &["password"]].concat());
    assert_eq!(brought.code, 0, "{}\n{}", brought.stderr, lab.logs());
    assert_eq!(lab.status().hosts[0].state, HostState::Up);
    // What opens it is kept with the lab.
    signal(lab.daemon_pid("coordinator/coordinator.pid"), Signal::KILL);
    lab.ok(&["up", "-d"]);
    assert_eq!(lab.status().hosts[0].state, HostState::Up);
    lab.ok(&["down", "--wipe"]);
}

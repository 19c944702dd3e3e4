//! Bad input and bad luck: one clear error with the place and what to do, and nothing changes.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
};

use faultbed_common::report::NodeState;
use faultbed_tests::{
    lab::{ETCD, Lab, PATIENCE, Ran},
    wait::wait_for,
};

/// Demands a refusal that says all of `texts`.
fn refused(ran: &Ran, texts: &[&str]) {
    assert_eq!(ran.code, 2, "{}\n{}", ran.stdout, ran.stderr);
    for text in texts {
        assert!(ran.stderr.contains(text), "should say {text:?}:\n{}", ran.stderr);
    }
}

#[test]
fn mistakes_in_a_file_are_all_shown_with_their_places_and_nothing_is_started() {
    let lab = Lab::new("badfile");
    let file = lab.write(
        "lab.toml",
        "[lab]\nhosts = 3\n\n[cluster.kv]\nblueprint = \"etdc\"\ncuont = 3\n\n[cluster.kv2]\nblueprint = \"etcd\"\n\
         [cluster.kv2.etcd]\ncount = 0\nargs = 7\n\n[fault.f]\npartition = [[\"kv\"]]\nfor = \"-3s\"\n",
    );
    let ran = lab.run(&["up", "-d", &file.display().to_string()]);
    refused(
        &ran,
        &[
            "lab.toml:5",
            "did you mean \"etcd\"",
            "lab.toml:11",
            "lab.toml:12",
            "-3s",
            "lab.toml:16",
        ],
    );
    assert!(!lab.dir().exists(), "nothing was started");
}

#[test]
fn bad_requests_to_a_running_lab_change_nothing() {
    let lab = Lab::up("badverbs", ETCD);
    let before = lab.status().generation;
    let big = lab.write("big.toml", &format!("{ETCD}# {}\n", "x".repeat(10_000_000)));
    let big = big.display().to_string();
    let ten_million =
        lab.write("ten.toml", &format!("{ETCD}[cluster.kv.etcd]\ncount = 10000000\n"));
    let ten_million = ten_million.display().to_string();
    lab.write("noexec", "not a program");
    let cases: [(&[&str], &[&str]); 13] = [
        (&["partition", "kv-1"], &["two"]),
        (&["partition", "kv-1", "kv-9"], &["kv-9", "kv-"]),
        (&["isolate", "leader:nosuch"], &["nosuch"]),
        (&["inject", "latency", "-3s", "--from", "kv-1", "--to", "kv-2"], &["-3s", "below zero"]),
        (&["inject", "latnecy", "3s", "--from", "kv-1", "--to", "kv-2"], &["latency"]),
        (&["stop", "zk-1"], &["zk-1"]),
        (&["start", "cluster", "--name", "a/b", "--etcd.count", "1"], &["a/b"]),
        (&["start", "cluster", "--name", "a\nb", "--etcd.count", "1"], &["a\\nb"]),
        (&["start", "cluster", "--blueprint", "etdc"], &["etcd"]),
        (
            &["start", "cluster", "--name", "z", "--etcd.count", "0"],
            &["count of etcd is 0", "1 to 1000"],
        ),
        (
            &["start", "cluster", "--name", "z", "--etcd.path", "./noexec"],
            &["noexec", "executable"],
        ),
        (&["apply", "-f", &big], &["1000000"]),
        (&["apply", "-f", &ten_million], &["1000"]),
    ];
    for (args, texts) in cases {
        refused(&lab.run(args), texts);
    }
    assert_eq!(lab.status().generation, before);
}

#[test]
fn a_port_in_use_moves_the_whole_set_of_a_node() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").expect("take a port on every address");
    let port = taken.local_addr().expect("its address").port();
    let lab = Lab::new("ports");
    lab.write("two.toml", &two_ports(port - 1, port));
    let file =
        lab.write("lab.toml", "[lab]\nhosts = 1\n[cluster.web]\nblueprint = \"./two.toml\"\n");
    lab.ok(&["up", "-d", &file.display().to_string()]);
    let node = lab.node("web-1");
    let number = |name: &str| -> u16 {
        let text = node.endpoints[name].rsplit(':').next().expect("a port");
        text.parse().expect("a number")
    };
    assert_eq!(number("b"), number("a") + 1, "the whole set moves: {:?}", node.endpoints);
    assert!(number("b") > port && (number("b") - port).is_multiple_of(10), "{:?}", node.endpoints);
    assert_eq!(node.observed, NodeState::Ready);
}

/// A server with two ports, of which it serves the first.
fn two_ports(a: u16, b: u16) -> String {
    format!(
        r#"
name = "two"
summary = "a web server with a port too many"
[role.two]
program = "python3"
count = 1
port.a = {{ default = {a}, url = "http" }}
port.b = {{ default = {b} }}
args = ["-m", "http.server", "--bind", "{{{{ node.private }}}}", "--directory", "{{{{ node.data }}}}", "{{{{ node.port.a.port }}}}"]
ready = {{ http = "{{{{ node.port.a.bind }}}}/", expect = "status == 200" }}
"#
    )
}

#[test]
fn a_port_that_is_taken_later_is_stuck_with_its_holder_named_until_it_is_free() {
    let lab = Lab::up("clash", ETCD);
    let address = lab.node("kv-1").endpoints["client"].trim_start_matches("http://").to_owned();
    lab.ok(&["down"]);
    let taken = std::net::TcpListener::bind(&address).expect("take the port");
    let mut up = lab.command(&["up", "-d"]).spawn().expect("run faultbed");
    wait_for("the lab is back", PATIENCE, || {
        let ran = lab.run(&["status"]);
        if ran.code == 0 { Ok(()) } else { Err(ran.stderr) }
    });
    let own_pid = format!("pid {}", std::process::id());
    lab.wait("kv-1 is stuck, and who holds its port is named", |status| {
        let stuck = status.stuck.join("\n");
        (stuck.contains(&address) && stuck.contains(&own_pid)).then_some(())
    });
    drop(taken);
    lab.wait_ready();
    assert!(up.wait().expect("wait").success());
}

#[test]
fn a_node_that_exits_at_once_shows_its_exit_and_its_last_lines() {
    let lab = Lab::up("exits", ETCD);
    let ran = lab.run(&["set", "kv-3", "args=--no-such-flag"]);
    assert_ne!(ran.code, 0, "it never gets ready: {}", ran.stdout);
    let all = format!("{}{}", ran.stdout, ran.stderr);
    for text in ["kv-3 crashed", "exit 2", "Show the version of etcd."] {
        assert!(all.contains(text), "{text}: {all}");
    }
    assert_eq!(lab.node("kv-3").observed, NodeState::Crashed);
}

/// A server that ends at its third connection: what was wrong with the first is known by then.
const ENDS: &str = r#"
name = "ends"
summary = "a server that has enough"
[role.ends]
program = "python3"
count = 1
port.http = { default = 7070, url = "http" }
args = ["-c", """
import socket, sys
server = socket.create_server(("{{ node.private }}", {{ node.port.http.port }}))
for _ in range(3):
    server.accept()[0].close()
sys.exit("had enough")
"""]
ready = { http = "{{ port.http.bind }}/", expect = "status == 200" }
"#;

#[test]
fn a_node_that_ends_before_it_was_ready_shows_what_the_probe_said_last() {
    let lab = Lab::new("ends");
    lab.write("ends.toml", ENDS);
    let file =
        lab.write("lab.toml", "[lab]\nhosts = 1\n[cluster.web]\nblueprint = \"./ends.toml\"\n");
    let ran = lab.run(&["up", "-d", &file.display().to_string()]);
    assert_ne!(ran.code, 0, "it never gets ready: {}", ran.stdout);
    let all = format!("{}{}", ran.stdout, ran.stderr);
    for text in ["web-1 crashed", "exit 1", "had enough", "last failed probe"] {
        assert!(all.contains(text), "{text}: {all}");
    }
    assert_eq!(lab.node("web-1").observed, NodeState::Crashed);
}

#[test]
fn of_two_users_applying_at_once_neither_loses_work() {
    let lab = Lab::up("contended", ETCD);
    let verbs: Vec<_> = (0..8)
        .map(|n| {
            let name = format!("slow-{n}");
            lab.command(&[
                "inject", "latency", "1ms", "--from", "kv-1", "--to", "kv-2", "--name", &name,
            ])
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("run faultbed")
        })
        .collect();
    for mut verb in verbs {
        assert!(verb.wait().expect("wait").success());
    }
    assert_eq!(lab.status().faults.len(), 8);
    let generation = lab.status().generation.0.to_string();
    let stale = lab.run(&["heal", "--all", "--if-generation", "1"]);
    refused(&stale, &[&generation]);
}

/// A server that refuses root, as many databases do. The user is put before its ports.
fn refuses_root(user: &str) -> String {
    format!(
        r#"
name = "strict"
summary = "a server that refuses root"
[role.strict]
program = "/usr/bin/python3"
count = 1
{user}
port.http = {{ default = 7000, url = "http" }}
args = ["-c", "import http.server as h, os, sys; os.getuid() or sys.exit('root is not permitted'); h.HTTPServer((sys.argv[1], int(sys.argv[2])), h.SimpleHTTPRequestHandler).serve_forever()",
        "{{{{ node.private }}}}", "{{{{ port.http.port }}}}"]
ready = {{ http = "{{{{ port.http.bind }}}}/", expect = "status == 200" }}
"#
    )
}

#[test]
fn a_server_that_refuses_root_runs_as_the_user_it_asks_for_or_says_what_is_wrong() {
    let lab = Lab::new("strict");
    // Run by root, the server runs as its own user, who must get in.
    fs::set_permissions(lab.home(), fs::Permissions::from_mode(0o711)).expect("open the directory");
    lab.ok(&["up", "-d", "--hosts", "1"]);
    let start = |name: &str, user: &str| {
        let file = format!("./{name}.toml");
        lab.write(&file, &refuses_root(user));
        lab.run(&["start", "cluster", "--name", name, "--blueprint", &file, "--wait=20s"])
    };
    let ran = start("other", "user = \"nobody\"");
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let pid = lab.node("other-1").pid.expect("it runs");
    let owner = fs::metadata(format!("/proc/{pid}")).expect("its process").uid();
    let own = rustix::process::geteuid();
    if !own.is_root() {
        assert_eq!(owner, own.as_raw(), "only root can run anything as somebody else");
        return;
    }
    assert_ne!(owner, 0);
    let ran = start("root", "");
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("root is not permitted"), "{}", ran.stderr);
    let file = "./nobody.toml";
    lab.write(file, &refuses_root("user = \"no-such-user\""));
    let ran = lab.run(&["start", "cluster", "--name", "lost", "--blueprint", file, "--wait=2s"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("there is no such user") && ran.stderr.contains("useradd"));
    assert_eq!(lab.node("lost-1").pid, None, "nothing was started");
}

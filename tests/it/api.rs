//! The local API lets nobody else in: another user, a foreign page, a missing token.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
};

use faultbed_tests::{bins, lab::Lab};

fn request(address: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    write!(stream, "GET /api/v1/status HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")
        .expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    answer
}

#[test]
fn the_loopback_port_wants_the_token_and_refuses_foreign_pages() {
    let lab = Lab::up("door", "[lab]\nhosts = 1\n");
    let read = |name: &str| {
        let path = lab.runtime().join(name);
        let mode = std::fs::metadata(&path).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} is for its owner only");
        std::fs::read_to_string(path).expect("read").trim().to_owned()
    };
    let (address, token) = (read("api.addr"), read("api.token"));
    let host = format!("Host: {address}\r\n");
    let bearer = format!("Authorization: Bearer {token}\r\n");
    assert!(request(&address, &format!("{host}{bearer}")).starts_with("HTTP/1.1 200"));
    assert!(request(&address, &host).starts_with("HTTP/1.1 401"));
    let foreign = format!("{host}{bearer}Origin: http://evil.example\r\n");
    assert!(request(&address, &foreign).starts_with("HTTP/1.1 403"));
    let rebound = format!("Host: evil.example\r\n{bearer}");
    assert!(request(&address, &rebound).starts_with("HTTP/1.1 403"));
    let own = format!("{host}{bearer}Origin: http://{address}\r\n");
    assert!(request(&address, &own).starts_with("HTTP/1.1 200"));
}

#[test]
fn another_user_is_refused_at_the_socket() {
    if !rustix::process::getuid().is_root() {
        // Becoming another user takes root; peer credentials themselves are checked by unit tests.
        return;
    }
    let lab = Lab::up("others", "[lab]\nhosts = 1\n");
    // Even with every door on the way opened by mistake, the coordinator looks at who calls.
    for path in [
        lab.home().to_owned(),
        lab.home().join("run"),
        lab.home().join("run/faultbed"),
        lab.runtime(),
    ] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let socket = lab.runtime().join("api.sock");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    let copy = std::env::temp_dir().join(format!("faultbed-other-{}", std::process::id()));
    std::fs::copy(bins::path("faultbed"), &copy).expect("copy");
    let output = Command::new(&copy)
        .arg("status")
        .env("FAULTBED_LAB", "others")
        .env("XDG_RUNTIME_DIR", lab.home().join("run"))
        .env("XDG_STATE_HOME", lab.home().join("state"))
        .uid(65534)
        .gid(65534)
        .current_dir("/")
        .output()
        .expect("run as nobody");
    std::fs::remove_file(&copy).expect("remove");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("65534") || text.contains("permission") || text.contains("refused"),
        "{text}"
    );
}

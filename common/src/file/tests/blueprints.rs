//! Blueprint files.

use expect_test::{expect, expect_file};

use super::*;

/// The blueprint that the design shows to whoever writes their first.
const MYKV: &str = r#"
name = "mykv"
summary = "our key-value store"
[role.mykv]
program = "mykv"
count   = 3
port.client = { default = 7000, url = "http" }
port.peer   = { default = 7001 }
args = ["--id={{ node.name }}", "--listen={{ port.client.bind }}", "--advertise={{ port.client.advertise }}",
        "--peers={% for n in role.mykv %}{{ n.port.peer.seen_by(node) }}{% if not loop.last %},{% endif %}{% endfor %}", "--data={{ node.data }}"]
logs  = ["{{ node.data }}/mykv.log"]
ready = { http = "{{ port.client.bind }}/health", expect = "status == 200" }
role_state = { http = "{{ port.client.bind }}/status", leader = "json.leader == json.id" }
stop  = { signal = "SIGTERM", grace = "10s" }
limits = { nofile = 65536, core = "unlimited" }
join  = { before = ["mykvctl", "add", "{{ node.name }}"] }
leave = { before = ["mykvctl", "remove", "{{ node.name }}"] }
[effect.pause-apply]
on  = { http = "PUT {{ port.client.bind }}/failpoint/apply", body = "pause" }
off = { http = "DELETE {{ port.client.bind }}/failpoint/apply" }
"#;

#[test]
fn a_first_blueprint_of_thirty_lines_is_understood() {
    let mykv = parse_blueprint(MYKV).unwrap();
    let role = &mykv.roles[&"mykv".parse::<crate::name::RoleName>().unwrap()];
    assert_eq!(role.limits.core, Some(u64::MAX));
    assert_eq!(role.args.len(), 5);
    assert!(mykv.effects.contains_key("pause-apply"));
    let json = serde_json::to_string(&mykv).unwrap();
    assert_eq!(serde_json::from_str::<Blueprint>(&json).unwrap(), mykv);
}

#[test]
fn what_ships_is_right() {
    for &(name, text) in SHIPPED {
        let blueprint = parse_blueprint(text).map_err(|p| show(text, &p)).unwrap();
        assert_eq!(blueprint.name.as_str(), name);
    }
}

#[test]
fn a_blueprint_with_many_mistakes_shows_all_of_them() {
    let text = r#"
name = "my kv"
[role.mykv]
progam = "mykv"
count   = 0
search  = ["bin"]
port.client = { default = 70000, reserve = ["1"] }
port.peer   = { default = 7001, reserve = ["+1"], source = "peer" }
port.more   = { default = 7002 }
args = ["--id={{ node.name }", "{% for n in role.mykv %}{{ n.name }}"]
after = ["mykb"]
files."../x" = "a"
config = "my.toml"
init = ["mkfs"]
ready = { http = "PATCH {{ port.client.bind }}/health", tcp = "x", expect = "status == 200 && true" }
role_state = { log = "(", leader = "jsn.leader" }
stop  = { signal = "SIGTREM", grace = "10" }
limits = { nofile = "many" }
leave = { before = [], after = ["x"], timeout = "soon", required = "yes", args = [] }
[effect.pause-apply]
on  = { }
"#;
    expect_file!["./many_blueprint_mistakes.txt"].assert_eq(&blueprint_errors(text));
}

#[test]
fn names_that_templates_do_not_have_are_found_in_the_file() {
    let text = MYKV
        .replace("node.name }}\", \"--listen", "node.nmae }}\", \"--listen")
        .replace("port.client.advertise", "port.cleint.advertise")
        .replace("n.port.peer.seen_by(node)", "n.port.peeer.seen_by(node)")
        .replace("{{ node.data }}/mykv.log", "{{ data }}/mykv.log")
        .replace("PUT {{ port.client.bind }}", "PUT {{ port.client.seen_from(node) }}")
        .replace("\"remove\", \"{{ node.name }}\"", "\"remove\", \"{{ nod.name }}\"");
    expect![[r#"
        error: "node.nmae" is undefined
         --> lab.toml:9:18
          |
        9 | args = ["--id={{ node.nmae }}", "--listen={{ port.client.bind }}", "--advertise={{ port.cleint.advertise }}",
          |                  ^^^^^^^^^
          = help: did you mean "node.name"?

        error: "port.cleint" is undefined
         --> lab.toml:9:88
          |
        9 | args = ["--id={{ node.nmae }}", "--listen={{ port.client.bind }}", "--advertise={{ port.cleint.advertise }}",
          |                                                                                        ^^^^^^^^^^^^^^^^^
          = help: did you mean "port.client"?

        error: "n.port.peeer" is undefined
          --> lab.toml:10:57
           |
        10 | …={% for n in role.mykv %}{{ n.port.peeer.seen_by(node) }}{% if not loop.last %},{% endif %}{% endfor %}", "--data={{ nod…
           |                                          ^^^^^^^^^^^^^^
           = help: did you mean "n.port.peer"?

        error: "data" is undefined
          --> lab.toml:11:14
           |
        11 | logs  = ["{{ data }}/mykv.log"]
           |              ^^^^
           = help: a template knows node, port, role, cluster, tls and lab

        error: "nod" is undefined
          --> lab.toml:17:46
           |
        17 | leave = { before = ["mykvctl", "remove", "{{ nod.name }}"] }
           |                                              ^^^^^^^^
           = help: did you mean "node"?

        error: unknown method: a port has seen_by(NODE), and no seen_from
          --> lab.toml:19:35
           |
        19 | on  = { http = "PUT {{ port.client.seen_from(node) }}/failpoint/apply", body = "pause" }
           |                                   ^^^^^^^^^^^^^^^^

    "#]].assert_eq(&blueprint_errors(&text));
}

#[test]
fn paths_that_leave_the_node_and_endless_templates_are_found() {
    let with = |line: &str| MYKV.replace("count   = 3", &format!("count = 3\n{line}"));
    let climbs = with("dirs = [\"wal\", \"{{ node.dir }}/../other\"]");
    expect![[r#"
        error: dirs[1]: "/sample/h1/nodes/sample-1/../other" is not a path below the node's directory
         --> lab.toml:7:16
          |
        7 | dirs = ["wal", "{{ node.dir }}/../other"]
          |                ^^^^^^^^^^^^^^^^^^^^^^^^^

    "#]].assert_eq(&blueprint_errors(&climbs));
    let endless = with(
        "version = []\nenv = { X = \"{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}\" }",
    );
    expect![[r#"
        error: it takes too long: is there an endless loop?
         --> lab.toml:8:13
          |
        8 | env = { X = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}" }
          |             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

    "#]].assert_eq(&blueprint_errors(&endless));
}

#[test]
fn a_port_that_cannot_be_split_is_found_before_anything_starts() {
    let every =
        MYKV.replace("--listen={{ port.client.bind }}", "--listen=0.0.0.0:{{ port.client.port }}");
    expect![[r#"
        error: port client cannot be split: 0.0.0.0:7000 is every address, also the one where its proxy listens
         --> lab.toml:9:33
          |
        9 | args = ["--id={{ node.name }}", "--listen=0.0.0.0:{{ port.client.port }}", "--advertise={{ port.client.advertise }}",
          |                                 ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
          = help: bind {{ port.client.bind }} and tell others {{ port.client.advertise }}; a port that no fault is for can have proxied = false

    "#]].assert_eq(&blueprint_errors(&every));
    // Nothing says which address of the machine it should have, and it takes all of them.
    let untold = "name = \"x\"\nsummary = \"x\"\n[role.x]\nprogram = \"xd\"\nargs = [\"--port={{ port.client.port }}\"]\n\
        port.client = { default = 7000 }\nport.http = { default = 7001, proxied = false }\n";
    expect![[r#"
        error: port client cannot be split: nothing that xd is started with names an address to bind it at
         --> lab.toml:6:15
          |
        6 | port.client = { default = 7000 }
          |               ^^^^^^^^^^^^^^^^^^
          = help: bind {{ port.client.bind }} and tell others {{ port.client.advertise }}; a port that no fault is for can have proxied = false

    "#]].assert_eq(&blueprint_errors(untold));
    // A file may speak of every address where it means something else.
    let file = "files = { \"x.conf\" = \"listen {{ port.client.bind }}\\nallow 0.0.0.0/0\\n\" }\n";
    parse_blueprint(&format!("{}{file}", untold)).map_err(|p| show(untold, &p)).unwrap();
    let private = untold.replace("default = 7000", "default = 7000, proxied = false");
    parse_blueprint(&private).map_err(|p| show(&private, &p)).unwrap();
}

#[test]
fn an_effect_has_values_and_may_end_with_a_restart() {
    let whole = MYKV.replace("failpoint/apply\"", "failpoint/{{ value.point }}\"").replace(
        "[effect.pause-apply]",
        "[effect.drain]\non = { command = [\"mykvctl\", \"drain\"] }\noff = \"restart\"\n\
         [effect.pause-apply]\nvalues = { point = \"\", terms = \"pause\" }",
    );
    let blueprint = parse_blueprint(&whole).map_err(|p| show(&whole, &p)).unwrap();
    assert_eq!(blueprint.effects["drain"].off, None);
    let effect = &blueprint.effects["pause-apply"];
    let chosen = |values: &[(&str, &str)]| {
        let values = values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        effect.values(&values.collect()).map(|all| all.into_values().collect::<Vec<_>>())
    };
    assert_eq!(chosen(&[("point", "apply")]).unwrap(), ["apply", "pause"]);
    assert_eq!(chosen(&[]).unwrap_err(), "say which point: point=…");
    let wrong = chosen(&[("point", "apply"), ("term", "x")]).unwrap_err();
    assert_eq!(wrong, "it has no value \"term\"; it has point, terms");
    let text = whole.replace("off = \"restart\"", "off = \"reboot\"").replacen(
        "{{ value.point }}",
        "{{ value.pont }}",
        1,
    );
    expect![[r#"
        error: off cannot be "reboot"
          --> lab.toml:20:7
           |
        20 | off = "reboot"
           |       ^^^^^^^^
           = help: it can be "restart"

    "#]]
    .assert_eq(&blueprint_errors(&text));
}

#[test]
fn roles_that_wait_for_each_other_are_refused() {
    let text = r#"
name = "two"
summary = "two roles"
[role.a]
program = "a"
count = 1
after = ["b"]
[role.b]
program = "b"
count = 1
after = ["a"]
"#;
    expect![[r#"
        error: role a would wait for itself for ever
         --> lab.toml:4:7
          |
        4 | [role.a]
          |       ^
          = help: look at after

        error: role b would wait for itself for ever
         --> lab.toml:8:7
          |
        8 | [role.b]
          |       ^
          = help: look at after

    "#]]
    .assert_eq(&blueprint_errors(text));
}

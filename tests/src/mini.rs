//! The blueprint of `mini-node`, the tiny database of whole labs whose database does not matter.

use crate::bins;

/// What the nodes of a lab do, beside saying that they live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mini {
    /// Nothing.
    Idle,
    /// Each streams to every other, every millisecond, and says whom it hears.
    Streams,
    /// The same, every ten; they also choose a leader, and give clients back what they send.
    Echoes,
}

/// The blueprint `mini` of three nodes, with this build's program.
#[must_use]
pub fn blueprint(does: Mini) -> String {
    let peers = match does {
        Mini::Idle => "",
        Mini::Streams | Mini::Echoes => {
            "{% for n in role.mini %}{{ n.name }}={{ n.port.peer.advertise }},{% endfor %}"
        }
    };
    let (options, more) = match does {
        Mini::Idle => ("", ""),
        Mini::Streams => (r#", "--every-ms=1""#, ""),
        Mini::Echoes => (
            r#", "--echo={{ node.port.client.bind }}""#,
            r#"port.client = { default = 7000 }
role_state = { http = "{{ node.port.http.bind }}/status", leader = "json.id == json.leader", term = "json.term" }"#,
        ),
    };
    format!(
        r#"
name = "mini"
summary = "a database that holds nothing"
[role.mini]
program = "{program}"
count = 3
port.peer = {{ default = 7001 }}
port.http = {{ default = 7002, url = "http", proxied = false }}
args = ["--name={{{{ node.name }}}}", "--listen={{{{ node.port.peer.bind }}}}", "--http={{{{ node.port.http.bind }}}}",
        "--peers={peers}"{options}]
ready = {{ http = "{{{{ node.port.http.bind }}}}/status", expect = "status == 200" }}
{more}
"#,
        program = bins::path("mini-node").display()
    )
}

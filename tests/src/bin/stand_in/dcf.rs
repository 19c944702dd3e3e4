//! Stands in for libdcf: a list of members, who is alive, who leads, and nothing that is replicated.
//!
//! As the real one it dials its own address before it binds it, binds what it tells its peers, lets in
//! nobody whose address is not in its list, and takes the leader's list over. `dcf-node` is a driver
//! around it, as `deploy/blueprints/dcf.md` asks for one.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{ANSWER, EVERY, address, die, flags, get, open, print, serve};

/// A member that has not answered for this long is gone; the real one has a few seconds too.
const GONE_AFTER: Duration = Duration::from_secs(2);

/// Members by number, as in the list that every node is given.
type Members = BTreeMap<u64, SocketAddr>;

/// One node of a group.
#[derive(Debug)]
pub(crate) struct Group {
    id: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    members: Members,
    leader: Option<u64>,
    term: u64,
}

impl Group {
    /// Joins the group of a list.
    pub(crate) fn start(id: u64, list: &str) -> Arc<Self> {
        let members = members(list);
        let Some(own) = members.get(&id).copied() else {
            die(&format!("node {id} is not in the list"))
        };
        if TcpStream::connect_timeout(&own, ANSWER).is_ok() {
            die(&format!("TCP port conflict {own}"));
        }
        let listener = open(own);
        if listener.local_addr().is_ok_and(|bound| bound == own) {
            die(&format!("node {id} listens at {own}, as others dial it: nothing meets a proxy"));
        }
        let state = Mutex::new(State { members, leader: None, term: 0 });
        let group = Arc::new(Self { id, state });
        let (hears, asks) = (Arc::clone(&group), Arc::clone(&group));
        thread::spawn(move || hears.hear(&listener));
        thread::spawn(move || {
            let mut heard = BTreeMap::new();
            loop {
                asks.ask(&mut heard);
                thread::sleep(EVERY);
            }
        });
        group
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who leads, as far as this node knows.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.state().leader
    }

    /// Whether this node leads.
    pub(crate) fn leads(&self) -> bool {
        self.leader() == Some(self.id)
    }

    /// What libdcf says of the stream.
    pub(crate) fn stream_info(&self) -> String {
        let state = self.state();
        let role = match state.leader {
            Some(leader) if leader == self.id => "LEADER",
            Some(_) => "FOLLOWER",
            None => "PRE_CANDIDATE",
        };
        let leader = state.leader;
        json!({"stream_id": 1, "local_node_id": self.id, "role": role, "term": state.term, "leader_id": leader})
            .to_string()
    }

    /// Changes the members, which only the leader does.
    pub(crate) fn change(&self, id: u64, to: Option<SocketAddr>) -> bool {
        let is_leader = self.leads();
        let mut state = self.state();
        if is_leader {
            match to {
                Some(address) => state.members.insert(id, address),
                None => state.members.remove(&id),
            };
        }
        is_leader
    }

    /// Hands the lead over.
    pub(crate) fn promote(&self, id: u64) -> bool {
        let may = self.leads() && self.state().members.contains_key(&id);
        if may {
            let mut state = self.state();
            state.leader = Some(id);
            state.term += 1;
        }
        may
    }

    /// What this node knows.
    fn view(&self) -> View {
        let State { members, leader, term } = &*self.state();
        View { term: *term, leader: leader.unwrap_or(0), members: members.clone() }
    }

    /// Answers members: who leads, and the list.
    fn hear(&self, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let Ok(peer) = stream.peer_addr() else { continue };
            let members = self.state().members.clone();
            let is_member = |(id, at): (&u64, &SocketAddr)| *id != self.id && at.ip() == peer.ip();
            if !members.iter().any(is_member) {
                let _ = writeln!(std::io::stderr(), "{peer} is refused, not in whitelist");
                continue;
            }
            let _bounded = stream.set_read_timeout(Some(ANSWER));
            // To the end of the request: closing a socket with unread bytes in it resets it.
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let _last = lines.take_while(|line| !line.is_empty()).count();
            let View { term, leader, members } = self.view();
            let list: Vec<String> = members.iter().map(|(id, at)| format!("{id}={at}")).collect();
            let body = format!("{term} {leader} {}", list.join(","));
            let _gone = write!(&stream, "HTTP/1.1 200 OK\r\n\r\n{body}");
        }
    }

    /// Asks all others, and follows whom they follow; without a majority nobody leads.
    fn ask(&self, heard: &mut BTreeMap<u64, (Instant, String)>) {
        let members = self.state().members.clone();
        let others = members.iter().filter(|(id, _)| **id != self.id);
        for (id, at) in others {
            if let Some(text) = get(*at, "/alive") {
                heard.insert(*id, (Instant::now(), text));
            }
        }
        let recent = heard.iter().filter(|(_, (at, _))| at.elapsed() < GONE_AFTER);
        let recent = recent.filter(|(id, _)| members.contains_key(id));
        let said: BTreeMap<u64, String> =
            recent.map(|(id, (_, text))| (*id, text.clone())).collect();
        let is_alive = |id: &u64| *id == self.id || said.contains_key(id);
        let has_majority = (said.len() + 1) * 2 > members.len();
        let views = said.values().filter_map(|text| View::read(text));
        let mut state = self.state();
        let term = views.clone().map(|view| view.term).max().unwrap_or(0).max(state.term);
        let own = View { term: state.term, leader: state.leader.unwrap_or(0), members };
        let newest = views.chain([own.clone()]).filter(|view| is_alive(&view.leader));
        // Two that began at once lead the same term: the lower number has it.
        let newest = newest.max_by_key(|view| (view.term, Reverse(view.leader)));
        let first = own.members.keys().copied().find(|id| is_alive(id)).unwrap_or(self.id);
        let next = newest.unwrap_or(View { term: term + 1, leader: first, ..own });
        if !has_majority {
            state.leader = None;
            return;
        }
        let follows = next.leader != self.id;
        (state.term, state.leader) = (next.term, Some(next.leader));
        let list = said.get(&next.leader).and_then(|text| View::read(text)).filter(|_| follows);
        if let Some(leader) = list {
            state.members = leader.members;
        }
    }
}

/// What a member says.
#[derive(Debug, Clone)]
struct View {
    term: u64,
    /// 0 where it knows none.
    leader: u64,
    members: Members,
}

impl View {
    fn read(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (term, leader) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let member = |part: &str| {
            let (id, at) = part.split_once('=')?;
            Some((id.parse().ok()?, at.parse().ok()?))
        };
        let members = words.next()?.split(',').map(member).collect::<Option<Members>>()?;
        Some(Self { term, leader, members })
    }
}

/// The members of a list, which must be whole.
pub(crate) fn members(list: &str) -> Members {
    let parsed: Vec<BTreeMap<String, Value>> =
        serde_json::from_str(list).unwrap_or_else(|error| die(&format!("parse {list:?}: {error}")));
    let member = |entry: &BTreeMap<String, Value>| {
        let known = ["stream_id", "node_id", "ip", "port", "role"];
        if let Some(key) = entry.keys().find(|key| !known.contains(&key.as_str())) {
            die(&format!("{key} is no field of a node"));
        }
        let role = entry.get("role")?.as_str()?;
        let fits = entry.get("stream_id")? == 1 && ["LEADER", "FOLLOWER"].contains(&role);
        let port = u16::try_from(entry.get("port")?.as_u64()?).ok()?;
        let ip = entry.get("ip")?.as_str()?.parse().ok()?;
        fits.then_some((entry.get("node_id")?.as_u64()?, SocketAddr::new(ip, port)))
    };
    let members: Option<Members> = parsed.iter().map(member).collect();
    let members = members.unwrap_or_else(|| die(&format!("{list:?} lacks something")));
    if members.len() != parsed.len() {
        die("two nodes of the list have one number");
    }
    members
}

/// `dcf-node`.
pub(crate) fn dcf_node(args: &[String]) {
    if args == ["--version"] {
        return print("DCF stand-in");
    }
    let flags = flags(args, &["id", "list", "data", "http"], &[]);
    let id = flags["id"].parse().unwrap_or_else(|_| die("--id is no number"));
    let list = fs::read_to_string(&flags["list"])
        .unwrap_or_else(|error| die(&format!("read --list: {error}")));
    if !Path::new(&flags["data"]).is_dir() {
        die("--data is no directory");
    }
    let http = open(address(&flags, "http", ""));
    let group = Group::start(id, &list);
    serve(http, move |path| {
        let (verb, query) = path.split_once('?').unwrap_or((path, ""));
        let words: BTreeMap<&str, &str> =
            query.split('&').filter_map(|word| word.split_once('=')).collect();
        let id = words.get("id").and_then(|id| id.parse().ok());
        let at = words.get("ip").zip(words.get("port"));
        let at = at.and_then(|(ip, port)| format!("{ip}:{port}").parse().ok());
        let done = match (verb, id, at) {
            ("/status", ..) => return (200, group.stream_info()),
            ("/add", Some(id), Some(at)) => group.change(id, Some(at)),
            ("/remove", Some(id), _) => group.change(id, None),
            ("/promote", Some(id), _) => group.promote(id),
            _ => return (404, String::new()),
        };
        (if done { 200 } else { 409 }, String::new())
    });
}

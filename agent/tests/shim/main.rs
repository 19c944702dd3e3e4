//! Runs real processes under real shims: what survives, what ends, what is recorded.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod dials;
mod far;
mod lab;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
    time::{Duration, Instant},
};

use faultbed_agent::node::{
    self, ExitRecord, LaunchError, Pause, RunState, ShimOrders, clock,
    launch::launch_with,
    process::ProcStat,
    records::{
        AskedRecord, AskedWhy, IDENTITY_FILE, IdentityRecord, LAUNCH_FILE, RUN_FILE, RunRecord,
        read_record, write_record,
    },
};
use faultbed_common::report::Identity;
use lab::{Lab, eventually, last_exit};

fn asked(why: AskedWhy, signal: i32) -> AskedRecord {
    AskedRecord { why, signal, at_boot_ms: clock::boottime_ms() }
}

#[test]
fn an_exit_code_is_recorded_with_nobody_watching() {
    let lab = Lab::new();
    let run = lab.launch("echo first; echo second >&2; exit 7");
    let exit = last_exit(&run.dir);
    assert_eq!((exit.code, exit.signal, exit.unseen), (Some(7), None, None));
    assert_eq!(node::last_lines(&run.dir, 5).unwrap(), ["first", "second"]);
    assert!(!run.record.shim.is_alive().unwrap() || eventually(|| !run.is_alive()));
}

#[test]
fn a_signal_that_was_asked_for_is_told_from_one_that_was_not() {
    let lab = Lab::new();
    let run = lab.launch("exec sleep 1000");
    node::signal_node(&run.record, &run.dir, &asked(AskedWhy::Stop, libc::SIGTERM)).unwrap();
    let exit = last_exit(&run.dir);
    assert_eq!((exit.code, exit.signal), (None, Some(libc::SIGTERM)));
    let RunState::Exited { asked, .. } = node::inspect(&run.dir) else { panic!() };
    assert!(exit.was_asked(asked.as_ref()));

    let run = lab.launch("kill -SEGV $$");
    let RunState::Exited { exit, asked, .. } = run.settled() else { panic!() };
    assert_eq!(exit.signal, Some(libc::SIGSEGV));
    assert!(!exit.was_asked(asked.as_ref()));
}

#[test]
fn a_node_outlives_the_sigkill_of_whoever_launched_it() {
    let lab = Lab::new();
    let dir = lab.run_dir();
    let spec = serde_json::to_string(&lab.spec("echo up; exec sleep 1000")).unwrap();
    // The launcher is a process of its own, which waits to be killed after the launch.
    let mut launcher = lab::helper("launch", &[dir.to_str().unwrap(), &spec]).spawn().unwrap();
    assert!(eventually(|| matches!(node::inspect(&dir), RunState::Running { .. })));
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    let RunState::Running { record, paused, .. } = node::inspect(&dir) else { panic!() };
    assert!(!paused && record.node.is_alive().unwrap());
    assert!(eventually(|| node::last_lines(&dir, 1).unwrap() == ["up"]));
    node::kill_tree(&record, &dir, &asked(AskedWhy::Stop, libc::SIGKILL)).unwrap();
    assert_eq!(last_exit(&dir).signal, Some(libc::SIGKILL));
}

#[test]
fn what_forks_away_ends_with_the_tree() {
    let lab = Lab::new();
    // One in a session of its own, one forked twice, one that ignores what can be ignored.
    let script = "setsid sleep 1001 & (setsid sh -c 'sleep 1002 & echo $! > twice' &) ; \
                  (trap '' TERM HUP INT; exec sleep 1003) & echo $! > stubborn; \
                  while [ ! -s twice ]; do :; done; echo $$ > main; wait";
    let run = lab.launch(script);
    assert!(eventually(|| lab.pid_in("main").is_some()));
    let pids = ["twice", "stubborn"].map(|file| lab.pid_in(file).unwrap());
    node::kill_tree(&run.record, &run.dir, &asked(AskedWhy::Kill, libc::SIGKILL)).unwrap();
    let exit = last_exit(&run.dir);
    assert_eq!(exit.signal, Some(libc::SIGKILL));
    assert!(exit.killed_descendants >= 3, "{exit:?}");
    for pid in pids {
        assert_eq!(ProcStat::of(pid), None, "{pid} still is there");
    }
    assert_eq!(node::leftovers(lab.dir()).unwrap(), []);
}

#[test]
fn children_that_outlive_the_node_are_ended_and_counted() {
    let lab = Lab::new();
    let run = lab.launch("sleep 1000 & echo $! > child; setsid sleep 1000 & exit 3");
    let exit = last_exit(&run.dir);
    assert_eq!((exit.code, exit.killed_descendants), (Some(3), 2));
    assert_eq!(ProcStat::of(lab.pid_in("child").unwrap()), None);
}

#[test]
fn lines_that_are_printed_last_are_kept() {
    let lab = Lab::new();
    let run =
        lab.launch("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo last");
    let exit = last_exit(&run.dir);
    assert_eq!(exit.log_bytes_dropped, 0);
    assert_eq!(node::last_lines(&run.dir, 2).unwrap(), ["line 2999", "last"]);
    assert_eq!(node::last_lines(&run.dir, 9000).unwrap().len(), 3001);
}

#[test]
fn output_is_rotated_by_size() {
    let lab = Lab::new();
    let mut spec =
        lab.spec("i=0; while [ $i -lt 4000 ]; do echo a line with number $i; i=$((i+1)); done");
    (spec.log_bytes_max, spec.log_files) = (20_000, 3);
    let run = lab.launch_spec(&spec);
    last_exit(&run.dir);
    let size = |name: &str| fs::metadata(run.dir.join(name)).map(|m| m.len()).unwrap_or(0);
    let sizes =
        [size("output.log"), size("output.log.1"), size("output.log.2"), size("output.log.3")];
    assert!(
        sizes[0] <= 20_100 && sizes[1] >= 20_000 && sizes[2] >= 20_000 && sizes[3] == 0,
        "{sizes:?}"
    );
    assert_eq!(node::last_lines(&run.dir, 1).unwrap(), ["a line with number 3999"]);
}

#[test]
fn the_death_of_the_shim_ends_the_node() {
    let lab = Lab::new();
    let run = lab.launch("exec sleep 1000");
    node::signal::send(&run.record.shim, libc::SIGKILL).unwrap();
    assert!(eventually(|| !run.record.node.is_alive().unwrap()));
    let RunState::Exited { exit, .. } = run.settled() else { panic!() };
    assert_eq!(exit.unseen.as_deref(), Some("its shim was killed"));
}

#[test]
fn a_detached_child_of_a_killed_shim_keeps_the_run_from_being_over() {
    let lab = Lab::new();
    let run = lab.launch("setsid sleep 1000 & echo $! > child; wait");
    assert!(eventually(|| lab.pid_in("child").is_some()));
    node::signal::send(&run.record.shim, libc::SIGKILL).unwrap();
    assert!(eventually(|| !run.is_alive()));
    let child = lab.pid_in("child").unwrap();
    assert!(eventually(|| match node::inspect(&run.dir) {
        RunState::Unknown { why } => why.contains(&child.to_string()),
        _ => false,
    }));
    let pids = || -> Vec<i32> {
        node::leftovers(lab.dir()).unwrap().iter().map(|left| left.process.pid).collect()
    };
    assert!(eventually(|| pids() == [child]), "{:?}, not {child}", pids());
    let left = node::leftovers(lab.dir()).unwrap();
    assert_eq!(left[0].tag, "t/kv-1/1");
    node::signal::send(&left[0].process, libc::SIGKILL).unwrap();
    assert!(matches!(run.settled(), RunState::Exited { .. }));
}

#[test]
fn a_pause_ends_at_its_deadline_by_the_shim_alone() {
    let lab = Lab::new();
    let run = lab.launch("setsid sh -c 'while :; do echo child; sleep 0.01; done' & while :; do echo main; sleep 0.01; done");
    let lines = || node::last_lines(&run.dir, 100_000).unwrap().len();
    assert!(eventually(|| lines() > 20));
    let until = clock::boottime_ns() + 3_000_000_000;
    let pause = Some(Pause { until_boottime_ns: Some(until) });
    node::set_orders(&run.dir, &run.record, &ShimOrders { pause, ..ShimOrders::default() })
        .unwrap();
    assert!(eventually(|| matches!(
        node::inspect(&run.dir),
        RunState::Running { paused: true, .. }
    )));
    // Everything stands: what is in the pipe is read soon, and then nothing more comes.
    assert!(eventually(|| {
        let before = lines();
        !lab::within(Duration::from_millis(100), || lines() != before)
    }));
    assert!(clock::boottime_ns() < until, "the machine is too slow for this test");
    let stood = lines();
    assert!(eventually(|| lines() > stood));
    assert!(clock::boottime_ns() >= until);
    assert!(matches!(node::inspect(&run.dir), RunState::Running { paused: false, .. }));
    run.end();
}

#[test]
fn a_pause_holds_until_ordered_otherwise_and_one_that_is_over_is_not_applied() {
    let lab = Lab::new();
    let paused =
        |run: &lab::Run| matches!(node::inspect(&run.dir), RunState::Running { paused: true, .. });
    let over = Some(Pause { until_boottime_ns: Some(clock::boottime_ns() - 1) });
    let run = lab.launch_with_orders(
        &lab.spec("while :; do echo x; sleep 0.01; done"),
        &ShimOrders { pause: over, ..ShimOrders::default() },
    );
    assert!(eventually(|| !node::last_lines(&run.dir, 1).unwrap().is_empty()));
    assert!(!paused(&run));

    let held =
        ShimOrders { pause: Some(Pause { until_boottime_ns: None }), ..ShimOrders::default() };
    node::set_orders(&run.dir, &run.record, &held).unwrap();
    assert!(eventually(|| paused(&run)));
    node::set_orders(&run.dir, &run.record, &ShimOrders::default()).unwrap();
    assert!(eventually(|| !paused(&run)));
    // Paused from its first moment, and a paused node can be ended.
    let second = lab.launch_with_orders(&lab.spec("exec sleep 1000"), &held);
    assert!(eventually(|| paused(&second)));
    second.end();
    run.end();
}

#[test]
fn a_program_that_cannot_run_is_refused_with_the_reason() {
    let lab = Lab::new();
    let refused = |program: &str| -> String {
        let mut spec = lab.spec("");
        spec.program = program.into();
        let dir = lab.run_dir();
        let error = lab.try_launch(&dir, &spec, &ShimOrders::default()).unwrap_err();
        assert!(matches!(error, LaunchError::Refused { .. }), "{error}");
        let RunState::Exited { exit, .. } = node::inspect(&dir) else { panic!() };
        assert_eq!(exit.unseen.as_deref(), Some(error.to_string().as_str()));
        error.to_string()
    };
    let file = |name: &str, content: &str, mode: u32| {
        let path = lab.dir().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    assert!(refused("/no/such").contains("run /no/such: No such file"), "{}", refused("/no/such"));
    assert!(refused(&file("plain", "x", 0o644)).contains("Permission denied"));
    assert!(
        refused(&file("text", "just text", 0o755)).contains("it is no program of this machine")
    );
    assert!(
        refused(&file("script", "#!/no/such/shell\n", 0o755)).contains("interpreter that it names")
    );
    assert!(refused("/usr").contains("it is a directory"));

    let mut spec = lab.spec("");
    spec.cwd = "/no/such/dir".into();
    let error = lab.try_launch(&lab.run_dir(), &spec, &ShimOrders::default()).unwrap_err();
    assert!(error.to_string().starts_with("change to /no/such/dir: No such file"), "{error}");
    let mut spec = lab.spec("");
    spec.user = Some("no-such-user".to_owned());
    let error = lab.try_launch(&lab.run_dir(), &spec, &ShimOrders::default()).unwrap_err();
    assert_eq!(error.to_string(), "find user \"no-such-user\": there is no such user");
}

#[test]
fn a_busy_program_is_refused() {
    let lab = Lab::new();
    let path = lab.dir().join("busy");
    fs::copy("/bin/sleep", &path).unwrap();
    let _writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let mut spec = lab.spec("");
    spec.program = path;
    let error = lab.try_launch(&lab.run_dir(), &spec, &ShimOrders::default()).unwrap_err();
    assert!(error.to_string().contains("Text file busy"), "{error}");
}

#[test]
fn a_run_directory_is_used_once() {
    let lab = Lab::new();
    let run = lab.launch("exec sleep 1000");
    let spec = lab.spec("exec sleep 1000");
    let again = || lab.try_launch(&run.dir, &spec, &ShimOrders::default()).unwrap_err();
    assert!(matches!(again(), LaunchError::Busy { .. }));
    let by_hand = Command::new(lab::agent()).arg("shim").arg(&run.dir).output().unwrap();
    assert!(!by_hand.status.success());
    assert!(String::from_utf8_lossy(&by_hand.stdout).contains("under way"), "{by_hand:?}");
    assert!(run.is_alive());
    run.end();
    assert!(matches!(again(), LaunchError::Used { .. }));
}

#[test]
fn a_record_of_used_pids_is_not_taken_for_a_run() {
    let lab = Lab::new();
    let run = lab.launch("exec sleep 1000");
    let fake = |name: &str, change: &dyn Fn(&mut RunRecord)| {
        let dir = lab.dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        let mut record = run.record.clone();
        change(&mut record);
        write_record(&dir, RUN_FILE, &record).unwrap();
        (node::inspect(&dir), record, dir)
    };
    let over = |state: RunState| {
        matches!(state, RunState::Exited { exit: ExitRecord { unseen: Some(_), .. }, .. })
    };
    // Both pids now belong to others.
    let (state, record, dir) = fake("recycled", &|record| {
        record.shim.start_ticks += 1;
        record.node.start_ticks += 1;
    });
    assert!(over(state));
    let end = asked(AskedWhy::Stop, libc::SIGKILL);
    assert!(node::signal_node(&record, &dir, &end).is_err());
    assert!(node::kill_tree(&record, &dir, &end).is_err());
    // Another boot of the machine.
    let (state, ..) = fake("rebooted", &|record| record.boot_id = "another".to_owned());
    let RunState::Exited { exit, rebooted: true, .. } = state else { panic!("{state:?}") };
    assert!(exit.unseen.is_some() && exit.told_to_end);
    // The shim's pid is another's, the node's is not: nobody can tell.
    let (state, ..) = fake("half", &|record| record.shim.start_ticks += 1);
    assert!(matches!(state, RunState::Unknown { .. }), "{state:?}");
    // A process that is there, but hangs on another parent.
    let (state, ..) = fake("foreign", &|record| {
        record.shim = node::ProcessId::of(std::process::id().cast_signed()).unwrap()
    });
    assert!(
        matches!(&state, RunState::Unknown { why } if why.contains("not a child of its shim")),
        "{state:?}"
    );
    let (state, ..) = fake("later", &|record| record.version = 99);
    assert!(matches!(state, RunState::Unknown { .. }), "{state:?}");
    assert!(run.is_alive());
    run.end();
}

#[test]
fn a_node_gets_its_environment_limits_and_signals_and_nothing_of_the_agent() {
    let lab = Lab::new();
    let mut spec = lab.spec(
        "env; echo nofile=$(ulimit -n); pwd; ls -l /proc/self/fd | sed 's/.* -> /fd=/'; \
         grep SigIgn /proc/self/status; grep SigBlk /proc/self/status; cat; echo read=$?",
    );
    spec.env = [("GIVEN", "yes"), ("no_proxy", "mine")].map(|(k, v)| (k.into(), v.into())).into();
    spec.limits.nofile = Some(777);
    let dir = lab.run_dir();
    let text = serde_json::to_string(&spec).unwrap();
    let mut launcher = lab::helper("launch", &[dir.to_str().unwrap(), &text])
        .env("https_proxy", "http://lost:1")
        .env("NOTIFY_SOCKET", "/run/lost")
        .spawn()
        .unwrap();
    last_exit(&dir);
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    let lines = node::last_lines(&dir, 1000).unwrap();
    let has = |line: &str| lines.iter().any(|l| l == line);
    assert!(has("GIVEN=yes") && has("no_proxy=mine") && has("nofile=777"), "{lines:#?}");
    assert!(has(&lab.data().display().to_string()) && has("read=0"), "{lines:#?}");
    assert!(has("SigIgn:\t0000000000000000") && has("SigBlk:\t0000000000000000"), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("lost")), "{lines:#?}");
    let fds =
        lines.iter().filter(|line| line.starts_with("fd=") && !line.contains("/proc/")).count();
    assert_eq!(fds, 3, "{lines:#?}");
}

#[test]
fn a_node_runs_as_the_user_it_names() {
    let lab = Lab::new();
    let mut spec =
        lab.spec("id -u; id -g; id -G; echo $HOME; echo again > /dev/stdout; exec sleep 1000");
    spec.user = Some("65534".to_owned());
    if !rustix::process::geteuid().is_root() {
        spec.user = Some("root".to_owned());
        let error = lab.try_launch(&lab.run_dir(), &spec, &ShimOrders::default()).unwrap_err();
        assert!(error.to_string().contains("only root can become another user"), "{error}");
        return;
    }
    spec.cwd = "/".into();
    let run = lab.launch_spec(&spec);
    assert!(eventually(|| node::last_lines(&run.dir, 9).unwrap().len() == 5));
    let lines = node::last_lines(&run.dir, 9).unwrap();
    assert_eq!([&lines[0], &lines[1], &lines[4]], ["65534", "65534", "again"]);
    assert!(!lines[2].split(' ').any(|group| group == "0") && lines[3] != "/root", "{lines:?}");
    // The parent-death signal holds after the user switch.
    node::signal::send(&run.record.shim, libc::SIGKILL).unwrap();
    assert!(eventually(|| !run.record.node.is_alive().unwrap()));
}

#[test]
fn a_shim_is_small_and_sleeps() {
    let lab = Lab::new();
    let run = lab.launch("exec sleep 1000");
    assert!(eventually(|| run.dir.join("identity.json").exists()));
    let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", run.record.shim.pid)).unwrap();
    let private: u64 = smaps
        .lines()
        // Pages of the program itself count as private and dirty too, as long as no other shim runs
        // and a copy of it is not written to the disk yet.
        .filter(|line| line.starts_with("Anonymous:"))
        .filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    assert!(private <= 1024, "{private} kB\n{smaps}");
    let wakes = || {
        let status = fs::read_to_string(format!("/proc/{}/status", run.record.shim.pid)).unwrap();
        let line =
            status.lines().find(|line| line.starts_with("voluntary_ctxt")).unwrap().to_owned();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let (before, began) = (wakes(), Instant::now());
    assert!(
        !lab::within(Duration::from_millis(1500), || wakes() > before + 2),
        "{:?}",
        began.elapsed()
    );
    run.end();
}

#[test]
fn old_runs_are_pruned_but_never_one_that_lives() {
    let lab = Lab::new();
    let first = lab.launch("exec sleep 1000");
    for _ in 0..3 {
        last_exit(&lab.launch("exit 0").dir);
    }
    node::prune_runs(lab.dir(), 2).unwrap();
    let left: Vec<u64> =
        node::runs::all_runs(lab.dir()).unwrap().iter().map(|(n, _)| n.0).collect();
    assert_eq!(left, [1, 3, 4]);
    assert_eq!(node::newest_run(lab.dir()).unwrap().unwrap().0.0, 4);
    assert!(first.is_alive());
    first.end();
}

#[test]
fn watching_tells_of_the_end() {
    let lab = Lab::new();
    let run = lab.launch("exec sleep 1000");
    let end = node::watch(&run.record).unwrap();
    run.end();
    let mut fds = [rustix::event::PollFd::new(&end, rustix::event::PollFlags::IN)];
    let wait = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&wait)).unwrap(), 1);
    assert!(node::watch(&run.record).is_err());
}

#[test]
fn a_node_whose_connects_cannot_be_named_runs_all_the_same() {
    let lab = Lab::new();
    // A shim within a node: the kernel allows one listener for a tree.
    let inner = lab.dir().join("inner");
    fs::create_dir(&inner).unwrap();
    write_record(&inner, LAUNCH_FILE, &lab.spec("echo up; exec sleep 1000")).unwrap();
    let shim = format!("{} shim {}", lab::agent().display(), inner.display());
    let run = lab.launch(&format!("{shim}; exec sleep 1000"));
    let identity = || read_record::<IdentityRecord>(&inner, IDENTITY_FILE).unwrap();
    assert!(eventually(|| identity().is_some() && node::last_lines(&inner, 1).unwrap() == ["up"]));
    let why = "no seccomp listener: Device or resource busy (os error 16)";
    assert_eq!(identity().unwrap().identity, Identity::Lookup(why.to_owned()));
    assert!(matches!(node::inspect(&inner), RunState::Running { .. }));
    run.end();
    assert!(matches!(node::inspect(&inner), RunState::Exited { .. }));
}

/// All of the above as a user without any privilege.
#[test]
fn the_same_holds_without_root() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // Copies, since what cargo builds may lie where only root may look.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let [tests, agent] = ["tests", "agent"].map(|name| dir.path().join(name));
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(lab::agent(), &agent).unwrap();
    let output = Command::new(tests)
        .env(lab::AGENT_COPY, &agent)
        .env("TMPDIR", dir.path())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What this binary does when it is started as a helper of one of the tests above.
#[test]
fn helper() {
    let Some((verb, arguments)) = lab::helper_arguments() else { return };
    match verb.as_str() {
        "launch" => {
            let spec = serde_json::from_str(&arguments[1]).unwrap();
            let dir = std::path::Path::new(&arguments[0]);
            launch_with(&lab::agent(), dir, &spec, &ShimOrders::default()).unwrap();
            loop {
                std::thread::park();
            }
        }
        verb => dials::helper(verb, &arguments),
    }
}

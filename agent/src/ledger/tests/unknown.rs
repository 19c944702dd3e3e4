//! Orders of a later release.

use faultbed_common::report::HostReport;

use super::*;

/// Orders with a pause of a node, a cut of a link, and what `change` puts into them.
fn read(change: impl FnOnce(&mut serde_json::Value)) -> Told {
    let mut orders = faulty(1, 1, 0);
    orders.spec.proxy.faults.insert("cut-1".parse().unwrap(), link_fault());
    let mut json = serde_json::to_value(&orders).unwrap();
    change(&mut json);
    Told::read(&json.to_string())
}

fn accept(ledger: &mut Ledger, told: Told) -> HostReport {
    let Told::Orders(orders, unknown) = told else { panic!("{told:?}") };
    ledger.accept_partly(*orders, unknown, NOW).unwrap();
    let accepted = ledger.accepted().unwrap();
    let mut report = HostReport::default();
    accepted.unknown.fill(&accepted.spec, &mut report);
    report
}

#[test]
fn orders_of_this_release_are_understood_in_full() {
    let Told::Orders(_, unknown) = read(|_| {}) else { panic!() };
    assert_eq!(unknown, Unknown::default());
}

#[test]
fn a_fault_with_an_unknown_field_is_not_in_force_and_says_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    let told = read(|json| {
        json["spec"]["proxy"]["faults"]["cut-1"]["effect"]["glue"] = 3.into();
        json["spec"]["nodes"]["kv-1"]["faults"]["pause-1"]["depth"] = 1.into();
    });
    let report = accept(&mut ledger, told);
    let help = "is older than its coordinator: upgrade it";
    for (name, field) in [("cut-1", "effect.glue"), ("pause-1", "depth")] {
        let fault = &report.faults[&name.parse().unwrap()];
        let why = fault.why.as_deref().unwrap();
        assert!(why.contains(&format!("unknown field {field}")) && why.contains(help), "{why}");
        assert!(!fault.active && !fault.expired && fault.revision == FaultRevision(1));
    }
    assert_eq!(report.stuck, [""; 0]);
    // Also for an agent that begins with what is on disk, where the field is gone.
    let ledger = open(&dir, BOOT, NOW).unwrap();
    let accepted = ledger.accepted().unwrap();
    assert!(accepted.proxy_file().spec.faults.is_empty(), "the proxy never hears of it");
    assert!(accepted.is_over(&fault(), NOW), "and no shim");
}

#[test]
fn the_same_orders_in_full_put_the_fault_in_force_with_its_old_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    let told = read(|json| json["spec"]["nodes"]["kv-1"]["faults"]["pause-1"]["depth"] = 1.into());
    accept(&mut ledger, told);
    let later = NOW + Duration::from_secs(5);
    ledger.accept(faulty(1, 1, 0), later).unwrap();
    assert_eq!(end(&ledger), NOW + Duration::from_secs(30));
}

#[test]
fn another_unknown_field_makes_the_host_stuck_and_the_rest_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(&dir, BOOT, NOW).unwrap();
    let told = read(|json| {
        json["spec"]["nodes"]["kv-1"]["launch"]["colour"] = "red".into();
        json["weather"] = "fine".into();
    });
    let report = accept(&mut ledger, told);
    let [stuck] = report.stuck.as_slice() else { panic!("{report:?}") };
    assert!(stuck.contains("nodes.kv-1.launch.colour, weather"), "{stuck}");
    assert!(stuck.contains("is older than its coordinator: upgrade it"), "{stuck}");
    assert_eq!(end(&ledger), NOW + Duration::from_secs(30), "its fault is in force");
}

#[test]
fn orders_that_cannot_be_read_say_so_and_what_helps() {
    let told = read(|json| json["spec"]["nodes"]["kv-1"]["wanted"] = "hibernating".into());
    let Told::Unreadable(why) = told else { panic!() };
    assert!(why.contains("hibernating") && why.contains("upgrade it"), "{why}");
}

#[test]
fn what_is_not_said_again_of_the_rest_of_the_lab_is_what_was_said_before() {
    let mut around = None;
    let again = |json: &mut serde_json::Value| json["keeps_around"] = true.into();
    let Told::Unreadable(why) = read(again).whole(&mut around) else { panic!() };
    assert!(why.contains("not told before"), "{why}");

    let first = read(|json| {
        json["spec"]["proxy"]["diallers"] = serde_json::json!({ "127.77.1.9": "kv-9" });
        json["spec"]["weather"] = "fine".into();
        json["spec"]["nodes"]["kv-1"]["colour"] = "red".into();
    });
    let Told::Orders(first, _) = first.whole(&mut around) else { panic!() };
    let Told::Orders(second, unknown) = read(again).whole(&mut around) else { panic!() };
    assert_eq!(second.spec.proxy.diallers, first.spec.proxy.diallers);
    assert_eq!(second.spec.proxy.diallers.len(), 1);
    assert_eq!(unknown.fields, ["weather".to_owned()].into(), "and it is unknown as before");
}

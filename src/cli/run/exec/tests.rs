//! Commands as handlers: what becomes of the job, of the processes, and of what they say.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::*;
use crate::cli::run::testing::{Folder, LIMIT, Rig, attempt, job, outcome_of};
use crate::context::CancelReason;
use crate::shutdown::Phase;
use crate::source::Settlement;
use crate::worker::Dispatcher;

fn spec(argv: &[&str]) -> ExecSpec {
    ExecSpec {
        argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        env: BTreeMap::new(),
        folder: None,
        grace: Duration::from_secs(5),
        max_output: 1000,
        later: Duration::from_secs(60),
    }
}

fn shell(script: &str) -> ExecSpec {
    spec(&["sh", "-c", script])
}

/// Runs one attempt at an ordinary job.
async fn run(spec: ExecSpec, payload: &'static [u8]) -> (Outcome, String, String) {
    let handler = spec.handler().expect("a good spec");
    outcome_of(&handler, attempt(job(payload), None)).await
}

fn refusal(spec: ExecSpec) -> String {
    spec.handler().err().expect("it makes no sense")
}

/// What of the group is left: the state of each of its processes.
fn left_of(group: u32) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("a Linux").filter_map(Result::ok);
    let stats = processes.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
    let in_group = stats.filter_map(|stat| {
        // pid (name) state parent group …
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        (fields.get(2) == Some(&group.to_string().as_str())).then(|| fields[0].to_owned())
    });
    // Zombies are their parent's business.
    in_group.filter(|state| state != "Z").collect()
}

#[tokio::test]
async fn the_exit_status_says_what_becomes_of_the_job() {
    let script = "read line; echo out; echo oops >&2; eval \"$line\"";
    let mut rig = Rig::start(shell(script).handler().expect("sh is there"), |worker| worker);
    let later = Settlement::Release { after: Duration::from_secs(60) };
    for (payload, settlement, reason) in [
        ("exit 0", Some(Settlement::Ack), None),
        ("exit 75", Some(later), None),
        ("exit 65", Some(Settlement::Reject), Some("exited with status 65: oops")),
        ("exit 3", None, Some("exited with status 3: oops")),
        ("kill -KILL $$", None, Some("was ended by signal 9 (KILL): oops")),
    ] {
        rig.push(payload);
        let told = rig.told().await;
        match settlement {
            Some(settlement) => assert_eq!(told.settlement, settlement, "{payload}"),
            None => assert!(matches!(told.settlement, Settlement::Retry { .. }), "{payload}: {told:?}"),
        }
        assert_eq!(told.reason.as_deref(), reason, "{payload}");
        let output = told.output.expect("it is kept whatever the outcome");
        assert_eq!(output[..], b"[stdout, 4 bytes]\nout\n[stderr, 5 bytes]\noops\n"[..], "{payload}");
    }
    let report = rig.end().await;
    assert_eq!((report.stats.done, report.stats.snoozed, report.stats.rejected), (1, 1, 1));
}

#[tokio::test]
async fn a_command_knows_its_job_and_has_the_payload_on_its_standard_input() {
    let script = "env | grep ^TIDEGATE_ | sort; cat";
    let handler = shell(script).handler().expect("sh is there");
    let mut about = job("the payload");
    about.queue = "night shift".into();
    let (outcome, _, output) = outcome_of(&handler, attempt(about.clone(), None)).await;
    assert!(matches!(outcome, Outcome::Done));
    let said = "TIDEGATE_ATTEMPT=1\nTIDEGATE_JOB_ID=job-7\nTIDEGATE_KIND=work\nTIDEGATE_QUEUE=night shift\nthe payload";
    assert_eq!(output, format!("[stdout, {} bytes]\n{said}\n", said.len()));

    #[expect(clippy::disallowed_methods, reason = "the command is told by the wall clock")]
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let earliest = now() + 1000;
    let (_, _, output) = outcome_of(&handler, attempt(about, Some(Duration::from_secs(1000)))).await;
    let deadline = output.lines().find_map(|line| line.strip_prefix("TIDEGATE_DEADLINE="));
    let deadline: u64 = deadline.expect("there is one").parse().expect("whole seconds");
    assert!((earliest..=now() + 1000).contains(&deadline), "{deadline}");
}

#[tokio::test]
async fn no_shell_reads_the_arguments_and_nothing_of_the_job_is_among_them() {
    let (_, _, output) = run(spec(&["printf", "%s|", "$HOME", "*", "; exit 1", ""]), b"$(exit 1)").await;
    assert_eq!(output, "[stdout, 18 bytes]\n$HOME|*|; exit 1||\n");
}

#[tokio::test]
async fn a_payload_that_is_not_read_is_no_failure_and_one_that_is_read_comes_whole() {
    let payload = vec![b'x'; 1 << 20];
    for (script, said) in
        [("exit 0", ""), ("exec <&-; sleep 0.01", ""), ("wc -c", "[stdout, 8 bytes]\n1048576\n")]
    {
        let handler = shell(script).handler().expect("sh is there");
        let (outcome, _, output) = outcome_of(&handler, attempt(job(payload.clone()), None)).await;
        assert!(matches!(outcome, Outcome::Done), "{script}: {outcome:?}");
        assert_eq!(output, said);
    }
}

#[tokio::test]
async fn a_command_that_prints_a_gibibyte_costs_no_more_than_what_is_kept() {
    let (outcome, reason, output) =
        run(shell("echo first; head -c 1073741824 /dev/zero; echo last; echo why >&2; exit 1"), b"").await;
    assert!(matches!(outcome, Outcome::Fail { .. }));
    assert_eq!(reason, "exited with status 1: why");
    assert!(output.starts_with("[stdout, 1073741835 bytes]\nfirst\n\0"), "{:?}", &output[..50]);
    assert!(output.contains("\0\n[1073740835 bytes left out]\n\0"));
    assert!(output.ends_with("\0last\n[stderr, 4 bytes]\nwhy\n"));
    assert_eq!(output.bytes().filter(|byte| *byte == 0).count(), 1000 - 11);
}

#[tokio::test]
async fn the_reason_is_one_line_and_the_end_of_what_the_command_said() {
    let script = "seq 10000 >&2; printf 'bad \\033[31m\\377 thing\\n\\n' >&2; exit 2";
    let (_, reason, _) = run(shell(script), b"").await;
    assert!(reason.starts_with("exited with status 2: …"), "{reason}");
    assert!(reason.ends_with(r"\n10000\nbad \u{1b}[31m\xff thing"), "{reason}");
    assert!(!reason.contains(char::is_control) && reason.len() < 600, "{reason}");
    let (_, reason, output) = run(ExecSpec { max_output: 0, ..shell(script) }, b"").await;
    assert_eq!(reason, "exited with status 2");
    assert!(output.starts_with("[stderr, ") && output.contains(" bytes left out]\n"), "{output}");
}

#[tokio::test]
async fn as_much_as_may_be_kept_of_both_outputs_fits() {
    let script =
        "head -c 100000 /dev/zero | tr '\\0' a; head -c 100000 /dev/zero | tr '\\0' b >&2; echo end >&2";
    let (_, _, output) = run(ExecSpec { max_output: MAX_OUTPUT, ..shell(script) }, b"").await;
    assert!(output.len() > 2 * MAX_OUTPUT && output.len() < MAX_OUTPUT_BYTES, "{}", output.len());
    assert!(output.ends_with("bend\n"));
}

/// A script that ignores TERM and starts two more processes that do, of which one outlives its parent; then it says
/// its group's number through the FIFO `ready`.
fn stubborn(ready: &Path) -> String {
    let fifo = ready.display();
    format!("trap '' TERM; (sleep 1000 & sleep 1000 &) ; sleep 1000 & echo $$ > {fifo}; wait; sleep 1000")
}

async fn group_of(ready: &Path) -> u32 {
    let text = tokio::time::timeout(LIMIT, tokio::fs::read_to_string(ready)).await.expect("in time");
    text.expect("a FIFO").trim().parse().expect("a number")
}

#[tokio::test]
async fn a_command_that_ignores_term_is_killed_with_all_that_it_started_and_the_job_goes_back() {
    let folder = Folder::new();
    let ready = folder.fifo("ready");
    let spec = ExecSpec { grace: Duration::from_millis(50), ..shell(&stubborn(&ready)) };
    let mut rig = Rig::start(spec.handler().expect("sh is there"), |worker| worker);
    rig.push("");
    let group = group_of(&ready).await;
    assert_eq!(left_of(group).len(), 4);
    rig.shutdown.escalate(Phase::Cancel);
    let told = rig.told().await;
    assert_eq!(told.settlement, Settlement::Release { after: Duration::ZERO });
    assert_eq!(left_of(group), [""; 0], "they end before the job is settled");
    rig.end().await;
}

#[tokio::test]
async fn a_command_that_hangs_is_ended_at_its_timeout_and_has_failed() {
    let spec = ExecSpec {
        grace: Duration::from_millis(50),
        ..shell("trap '' TERM; echo $$; while :; do sleep 1000; done")
    };
    let handler = spec.handler().expect("sh is there");
    let mut rig = Rig::start(handler, |worker| worker.job_timeout(Duration::from_millis(500)));
    rig.push("");
    let told = rig.told().await;
    assert_eq!(told.reason.as_deref(), Some("timed out after 500ms"));
    assert!(matches!(told.settlement, Settlement::Retry { .. }));
    let output = String::from_utf8(told.output.expect("it said something").to_vec()).expect("text");
    let group = output.lines().nth(1).expect("a line of its own").parse().expect("a number");
    assert_eq!(left_of(group), [""; 0]);
    rig.end().await;
}

#[tokio::test]
async fn a_handler_that_is_aborted_leaves_no_process() {
    let folder = Folder::new();
    let ready = folder.fifo("ready");
    // A grace beyond the worker's, as it should not be.
    let spec = ExecSpec { grace: LIMIT, ..shell(&stubborn(&ready)) };
    let mut rig =
        Rig::start(spec.handler().expect("sh is there"), |worker| worker.dispatcher(Dispatcher::Shared));
    rig.push("");
    let group = group_of(&ready).await;
    rig.shutdown.escalate(Phase::Abort);
    assert_eq!(rig.told().await.settlement, Settlement::Release { after: Duration::ZERO });
    // KILL has been sent; dying takes its moment.
    let gone = async {
        while !left_of(group).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("nobody outlives it");
    rig.end().await;
}

#[tokio::test]
async fn what_a_command_leaves_running_in_its_group_is_told_to_end_before_its_job_is_done() {
    let folder = Folder::new();
    let ready = folder.fifo("ready");
    let ready = ready.display();
    let stays = format!("trap 'echo bye; exit' TERM; echo > {ready}; while :; do sleep 0.01; done");
    let script = format!("({stays}) & (sleep 1000 &); read line < {ready}; echo $$");
    let (outcome, _, output) = run(shell(&script), b"").await;
    assert!(matches!(outcome, Outcome::Done));
    let mut said = output.lines().skip(1);
    let group = said.next().and_then(|line| line.parse().ok()).expect("a number");
    assert_eq!(said.next(), Some("bye"), "{output}");
    assert_eq!(left_of(group), [""; 0]);
}

#[tokio::test]
async fn what_has_left_its_group_is_taken_away_when_it_has_ended() {
    let folder = Folder::new();
    let (gone, left) = (folder.fifo("gone"), folder.fifo("left"));
    let (gone, number) = (gone.display(), left.display());
    let script = format!("setsid sh -c 'echo > {gone}; echo $$ > {number}' & read line < {gone}");
    let ((outcome, _, _), process) = tokio::join!(run(shell(&script), b""), group_of(&left));
    assert!(matches!(outcome, Outcome::Done));
    let taken_away = async {
        while Path::new(&format!("/proc/{process}")).exists() {
            run(shell("exit 0"), b"").await;
        }
    };
    tokio::time::timeout(LIMIT, taken_away).await.expect("the next commands see to it");
}

#[tokio::test]
async fn a_command_that_was_told_to_stop_is_not_done_whatever_it_says() {
    let folder = Folder::new();
    let ready = folder.fifo("ready");
    let script = format!("trap 'exit 0' TERM; echo $$ > {}; while :; do sleep 0.01; done", ready.display());
    let context = attempt(job(""), None);
    let handler = shell(&script).handler().expect("sh is there");
    let (result, ()) = tokio::join!(outcome_of(&handler, context.clone()), async {
        group_of(&ready).await;
        context.run().cancel(CancelReason::Shutdown);
    });
    assert!(matches!(result.0, Outcome::Fail { .. }));
    assert_eq!(result.1, "exited with status 0 after it was told to stop");
}

#[tokio::test]
async fn a_command_runs_in_its_folder_and_is_looked_for_from_there() {
    let folder = Folder::new();
    let script = folder.write("script", "#!/bin/sh\npwd\n");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let there = std::fs::canonicalize(folder.path()).expect("it is there");
    for argv in [&["./script"][..], &["pwd"]] {
        let spec = ExecSpec { folder: Some(there.clone()), ..spec(argv) };
        let (outcome, reason, output) = run(spec, b"").await;
        assert!(matches!(outcome, Outcome::Done), "{reason}");
        assert_eq!(output.lines().nth(1), there.to_str());
    }
}

#[tokio::test]
async fn a_program_or_folder_that_goes_is_a_failure_that_says_so() {
    let folder = Folder::new();
    let script = folder.write("script", "#!/no/such/shell\n");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let there = folder.path().to_owned();
    let handler =
        ExecSpec { folder: Some(there.clone()), ..spec(&["./script"]) }.handler().expect("it is there");
    let (outcome, reason, _) = outcome_of(&handler, attempt(job(""), None)).await;
    assert!(matches!(outcome, Outcome::Fail { .. }));
    assert!(reason.starts_with("./script can't be started: No such file"), "{reason}");
    drop(folder);
    let (_, reason, _) = outcome_of(&handler, attempt(job(""), None)).await;
    assert!(reason.starts_with(&format!("{} is no folder any more: ", there.display())), "{reason}");
}

#[test]
fn a_shortage_of_the_system_costs_no_attempt() {
    let commands = Commands::new(shell("")).expect("sh is there");
    let outcome = |errno: Errno| commands.not_started(&errno.into());
    assert!(matches!(outcome(Errno::AGAIN), Outcome::Snooze(SHORTAGE_WAIT)));
    assert!(matches!(outcome(Errno::MFILE), Outcome::Snooze(SHORTAGE_WAIT)));
    assert!(matches!(outcome(Errno::ACCESS), Outcome::Fail { .. }));
}

#[tokio::test]
async fn a_job_whose_names_no_environment_can_hold_is_rejected() {
    let handler = shell("exit 0").handler().expect("sh is there");
    let mut odd = job("");
    odd.queue = "a\0b".into();
    let (outcome, reason, _) = outcome_of(&handler, attempt(odd, None)).await;
    assert!(matches!(outcome, Outcome::Reject(_)));
    assert_eq!(
        reason,
        r#"the job's queue "a\0b" has a NUL character, which no environment variable can hold"#
    );
}

#[tokio::test]
async fn a_secret_reaches_the_command_and_nobody_else() {
    let folder = Folder::new();
    let file = folder.write("token", "hunter2\n");
    let secret: Secret =
        serde_json::from_value(serde_json::json!({ "file": file })).expect("a form of a secret");
    let spec =
        ExecSpec { env: BTreeMap::from([("TOKEN".to_owned(), secret)]), ..shell("echo $TOKEN | wc -c") };
    assert!(!format!("{spec:?}").contains("hunter2"));
    let commands = Commands::new(spec.clone()).expect("the file is there");
    assert!(!format!("{commands:?}").contains("hunter2"));
    assert_eq!(run(spec, b"").await.2, "[stdout, 2 bytes]\n8\n");
}

#[test]
fn a_spec_that_makes_no_sense_is_refused_with_the_reason() {
    let env = |name: &str, value: &str| ExecSpec {
        env: BTreeMap::from([(name.to_owned(), Secret::from(value))]),
        ..shell("")
    };
    let missing: Secret = serde_json::from_str(r#"{"env":"TIDEGATE_TEST_NOT_SET"}"#).expect("a form");
    let folder = |path: &str| Some(PathBuf::from(path));
    for (spec, why) in [
        (spec(&[]), "the command is empty: there is nothing to run"),
        (spec(&["no-such-program"]), "no-such-program is not found in any folder of PATH"),
        (spec(&["/dev/null"]), "/dev/null is not an executable file"),
        (spec(&["s\0h", "a"]), "the program's name has a NUL character, which no argument can hold"),
        (spec(&["sh", "a\0b"]), "argument 1 has a NUL character, which no argument can hold"),
        (
            ExecSpec { folder: folder("/no/such"), ..shell("") },
            "/no/such is not a folder: the command can't run there",
        ),
        (
            ExecSpec { max_output: MAX_OUTPUT + 1, ..shell("") },
            "the most output that can be kept is 32512 bytes, not 32513",
        ),
        (env("A=B", ""), r#""A=B" can't be the name of an environment variable"#),
        (
            env("TIDEGATE_KIND", ""),
            "TIDEGATE_KIND can't be set: names that begin with TIDEGATE_ tell the command of its job",
        ),
        (env("A", "\0"), "the value of A has a NUL character, which no environment variable can hold"),
        (
            ExecSpec { env: BTreeMap::from([("A".to_owned(), missing)]), ..shell("") },
            "the value of A: the environment variable TIDEGATE_TEST_NOT_SET is not set",
        ),
    ] {
        assert_eq!(refusal(spec), why);
    }
}

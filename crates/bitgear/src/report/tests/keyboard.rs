//! The page under a person's keys: real key presses, through the browser's debugging pipe.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::super::explorer;
use super::super::text::percent;
use super::browser::browser;
use super::{TWO, run};

/// A browser with one page open. Messages are JSON, each ended by a zero byte.
struct Keyboard {
    child: Child,
    to: File,
    from: BufReader<File>,
    page: String,
    sent: u32,
}

impl Keyboard {
    fn open(browser: &Path, folder: &Path, page: &str) -> Keyboard {
        let file = folder.join("report.html");
        std::fs::write(&file, page).unwrap();
        let child = Command::new("sh")
            .current_dir(folder)
            .args(["-c", r#"mkfifo to from && : > made && exec "$0" "$@" 3<to 4>from"#])
            .arg(browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !folder.join("made").exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let to = File::options().write(true).open(folder.join("to")).unwrap();
        let from = BufReader::new(File::open(folder.join("from")).unwrap());
        let mut keyboard = Keyboard { child, to, from, page: String::new(), sent: 0 };
        let url = format!("file://{}", file.display());
        let target = keyboard.ask("Target.createTarget", json!({ "url": url }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = keyboard.ask("Target.attachToTarget", attach);
        session["sessionId"].as_str().unwrap().clone_into(&mut keyboard.page);
        let ready = "location.protocol == 'file:' && document.readyState == 'complete'";
        while keyboard.value(ready) != "true" {}
        keyboard
    }

    /// Sends a command and waits for its result; what the browser tells unasked is passed over.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if !self.page.is_empty() {
            message["sessionId"] = json!(self.page);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes).unwrap();
            let answer: Value = serde_json::from_slice(&bytes[..bytes.len() - 1]).unwrap();
            if answer["id"] == self.sent {
                assert_eq!(answer["error"], Value::Null);
                return answer["result"].clone();
            }
        }
    }

    fn press(&mut self, key: &str, code: u32) {
        for kind in ["rawKeyDown", "keyUp"] {
            let event =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            self.ask("Input.dispatchKeyEvent", event);
        }
    }

    /// What an expression gives in the page, as text.
    fn value(&mut self, expression: &str) -> String {
        let wanted = json!({ "expression": format!("String({expression})") });
        let answer = self.ask("Runtime.evaluate", wanted);
        answer["result"]["value"].as_str().unwrap().to_owned()
    }

    /// Goes from element to element as a reader without a mouse does, to the one of this id.
    fn tab_to(&mut self, id: &str) {
        for _ in 0..100 {
            if self.value("document.activeElement.id") == id {
                return;
            }
            self.press("Tab", 9);
        }
        panic!("no key leads to `{id}`");
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn keys_alone_reach_and_move_every_slider() {
    let Some(browser) = browser("keys_alone_reach_and_move_every_slider") else { return };
    let run = run(&TWO);
    let folder = tempfile::tempdir().unwrap();
    let mut keyboard = Keyboard::open(&browser, folder.path(), &run.page());
    let shown = |name: &str| format!("document.querySelector('[data-out=\"{name}\"]').textContent");
    let agrees = |keyboard: &mut Keyboard, accept_at: &[i32]| {
        let (accuracy, rates, chip) = explorer::outcome(&run, accept_at);
        assert_eq!(keyboard.value(&shown("accuracy")), percent(accuracy));
        assert_eq!(keyboard.value(&shown("rates")), percent(rates[0]));
        assert_eq!(keyboard.value(&shown("chip")), run.words().cost(chip));
    };

    keyboard.tab_to("threshold-1");
    let focused = "getComputedStyle(document.activeElement).outlineStyle";
    assert_ne!(keyboard.value(focused), "none", "where the keys go is not to be seen");
    keyboard.press("End", 35);
    agrees(&mut keyboard, &[100_000]);
    keyboard.press("Home", 36);
    agrees(&mut keyboard, &[-100_000]);
    keyboard.press("ArrowRight", 39);
    assert_eq!(keyboard.value("document.activeElement.value"), "1");
    keyboard.tab_to("reset");
    keyboard.press(" ", 32);
    agrees(&mut keyboard, TWO.accept_at);

    keyboard.tab_to("target");
    keyboard.press("Home", 36);
    let chip = keyboard.value("document.querySelector('[data-target=\"chip\"]').textContent");
    assert_eq!(chip, run.words().cost(run.summary.frontier[0].policy.energy_uj.chip));
}

//! The page in a browser: its script runs, and says what the library says. Needs Chromium.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::super::text::percent;
use super::super::{Run, explorer};
use super::{MIXED, ONE, SUMMED, THREE, TWO, run};

/// The browser; tests that need it name themselves where it is absent.
pub(super) fn browser(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|file| file.is_file());
    if found.is_none() {
        eprintln!("SKIPPED {test}: chromium is not installed");
    }
    found
}

/// Marks the page with what went wrong in it.
const WATCH: &str = r#"<script>
addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });
addEventListener("securitypolicyviolation", (event) => { document.documentElement.dataset.error = event.blockedURI; });
</script>"#;

/// Opens a page and runs the browser with some more arguments; gives what it prints.
fn open(browser: &PathBuf, page: &str, hash: &str, script: &str, more: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.html");
    let watched = page.replacen("<title>", &format!("{WATCH}\n<title>"), 1);
    let watched = watched.replace("</body>", &format!("<script>{script}</script></body>"));
    std::fs::write(&file, watched).unwrap();
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .args(more)
        .arg(format!("file://{}{hash}", file.display()))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(folder.path().join("out")).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_mins(2) {
            child.kill().unwrap();
            panic!("the browser does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let printed = std::fs::read_to_string(folder.path().join("out")).unwrap();
    assert!(!printed.contains("data-error="), "{}", value(&printed, "data-error=\"", "\""));
    printed
}

/// The page after its script ran, and another one.
fn dom(browser: &PathBuf, run: &Run, hash: &str, script: &str) -> String {
    open(browser, &run.page(), hash, script, &["--dump-dom"])
}

/// What a reader sees first.
fn screenshot(browser: &PathBuf, page: &str, more: &[&str]) -> image::GrayImage {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.png");
    let shot = format!("--screenshot={}", file.display());
    open(browser, page, "", "", &[&[&shot[..], "--window-size=800,600"], more].concat());
    image::open(&file).unwrap().to_luma8()
}

/// Pixels that differ from the ground below heading and sentence, where the first figure stands.
fn inked(image: &image::GrayImage) -> usize {
    let ground = image.get_pixel(2, 2).0[0];
    let below = image.enumerate_pixels().filter(|(_, y, _)| *y > 300);
    below.filter(|(_, _, pixel)| pixel.0[0].abs_diff(ground) > 60).count()
}

/// What stands between two texts.
fn value<'t>(text: &'t str, before: &str, after: &str) -> &'t str {
    let start = text.find(before).unwrap_or_else(|| panic!("no `{before}`")) + before.len();
    &text[start..start + text[start..].find(after).unwrap()]
}

fn shown<'t>(dom: &'t str, name: &str) -> &'t str {
    value(dom, &format!("data-out=\"{name}\">"), "<")
}

/// The script's figures are those of the library, as the library writes them.
fn agrees(dom: &str, run: &Run, accept_at: &[i32]) {
    let (accuracy, rates, chip) = explorer::outcome(run, accept_at);
    let rates: Vec<String> = rates.into_iter().map(percent).collect();
    assert_eq!(shown(dom, "accuracy"), percent(accuracy));
    assert_eq!(shown(dom, "rates"), rates.join(", then "));
    assert_eq!(shown(dom, "chip"), run.words().cost(chip));
    let saving = percent(1.0 - chip / run.summary.best_static.energy_uj.chip).replace('-', "−");
    assert_eq!(shown(dom, "saving"), saving);
}

#[test]
fn the_explorer_gives_the_librarys_figures_at_any_thresholds() {
    let Some(browser) = browser("the_explorer_gives_the_librarys_figures_at_any_thresholds") else {
        return;
    };
    let cases: [(_, &[&[i32]]); 4] = [
        (TWO, &[&[60], &[-5], &[17], &[100_000]]),
        (THREE, &[&[60, 45], &[120, 12]]),
        (SUMMED, &[&[33]]),
        (MIXED, &[&[33, 60]]),
    ];
    for (made, thresholds) in cases {
        let run = run(&made);
        agrees(&dom(&browser, &run, "", ""), &run, made.accept_at);
        for accept_at in thresholds {
            let codes: Vec<String> = accept_at.iter().map(i32::to_string).collect();
            let hash = format!("#at={}", codes.join(","));
            agrees(&dom(&browser, &run, &hash, ""), &run, accept_at);
        }
    }
}

#[test]
fn sliders_move_figures_and_drawings() {
    let Some(browser) = browser("sliders_move_figures_and_drawings") else { return };
    let run = run(&TWO);
    // To the end: everything is handed on.
    let script = r#"
const slider = document.getElementById("threshold-1");
slider.value = slider.max;
slider.dispatchEvent(new Event("input"));
const target = document.getElementById("target");
target.value = 0;
target.dispatchEvent(new Event("input"));"#;
    let dom = dom(&browser, &run, "", script);
    agrees(&dom, &run, &[100_000]);
    assert!(dom.contains("right answers: 0 accepted"));
    let strictest = &run.summary.frontier[0];
    let chip = value(&dom, "data-target=\"chip\">", "<");
    assert_eq!(chip, run.words().cost(strictest.policy.energy_uj.chip));
    assert_eq!(
        value(&dom, "data-target=\"stages\">", "<"),
        strictest.policy.stages.join(", then ")
    );
    // The later stage's bars are those of the chosen threshold, and say so.
    assert!(dom.contains("class=\"stale\""));
}

#[test]
fn the_page_fits_a_phone_and_a_wide_screen() {
    let Some(browser) = browser("the_page_fits_a_phone_and_a_wide_screen") else { return };
    let script =
        "document.body.dataset.width = document.documentElement.scrollWidth + ' of ' + innerWidth;";
    for made in [TWO, ONE] {
        for width in [500, 1600] {
            let size = format!("--window-size={width},900");
            let dom = open(&browser, &run(&made).page(), "", script, &[&size, "--dump-dom"]);
            let (content, window) = value(&dom, "data-width=\"", "\"").split_once(" of ").unwrap();
            let [content, window] = [content, window].map(|n| n.parse::<u32>().unwrap());
            assert!(content <= window, "{content} of {window}");
        }
    }
}

#[test]
fn the_ground_is_light_or_dark_as_the_reader_likes() {
    let Some(browser) = browser("the_ground_is_light_or_dark_as_the_reader_likes") else { return };
    let page = run(&TWO).page();
    let light = screenshot(&browser, &page, &[]);
    let dark = screenshot(&browser, &page, &["--blink-settings=preferredColorScheme=0"]);
    assert_eq!(light.get_pixel(2, 2).0[0], 255);
    assert!(dark.get_pixel(2, 2).0[0] < 60);
    for image in [light, dark] {
        assert!(inked(&image) > 2000, "{} pixels differ from the ground", inked(&image));
    }
}

#[test]
fn without_scripts_the_figures_stand_and_the_sliders_do_not() {
    let Some(browser) = browser("without_scripts_the_figures_stand_and_the_sliders_do_not") else {
        return;
    };
    // The browser itself needs scripts; the page's policy forbids them to the page.
    let page = run(&TWO).page().replace("script-src 'unsafe-inline'", "script-src 'none'");
    let dom = open(&browser, &page, "", "", &["--dump-dom"]);
    for panel in ["thresholds", "targets"] {
        assert!(dom.contains(&format!("id=\"{panel}\" hidden=")));
    }
    let image = screenshot(&browser, &page, &[]);
    assert!(inked(&image) > 2000, "{} pixels differ from the ground", inked(&image));
}

//! The page that `ringtide bench --report` writes, as a browser has it: what it shows is what the run
//! measured, and it needs no network.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringtide_system_tests::{Cli, data_root, disturbed_at_most, exit, skip};
use serde_json::Value;
use tempfile::TempDir;

/// A browser that does not answer for so long never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// A short run that wrote both files.
struct Run {
    home: TempDir,
    page: String,
    json: Value,
}

fn measured() -> Run {
    let home = TempDir::new_in(data_root()).expect("a folder");
    let args = [
        "bench",
        "--duration",
        "1",
        "--warm-up",
        "0.2",
        "--rate",
        "500",
        "--json",
        "run.json",
        "--report",
        "run.html",
    ];
    let done = Cli::without_server().run_in(home.path(), &args);
    // A busy machine may make the figures worthless, which has an exit code of its own.
    assert!([exit::DONE, 3].contains(&done.code()), "{done:?}");
    assert!(done.text().contains("run.html"), "{done:?}");
    let read = |name: &str| std::fs::read_to_string(home.path().join(name)).expect("a file");
    let json = serde_json::from_str(&read("run.json")).expect("JSON");
    disturbed_at_most(&json);
    Run {
        page: read("run.html"),
        json,
        home,
    }
}

/// The first Chromium or Chrome that is in the path.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut candidates = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    candidates.find(|candidate| candidate.is_file())
}

/// What the browser makes of a page, as HTML again.
fn dom(browser: &Path, home: &Path, page: &str) -> String {
    let file = std::fs::File::create(home.join("dom.html")).expect("a file");
    let mut running = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        // In a container /dev/shm may be small.
        .arg("--disable-dev-shm-usage")
        .arg(format!(
            "--user-data-dir={}",
            home.join("profile").display()
        ))
        .arg(format!("file://{}", home.join(page).display()))
        .stdout(file)
        .stderr(Stdio::null())
        .spawn()
        .expect("a browser that starts");
    let began = Instant::now();
    while running.try_wait().expect("a child").is_none() {
        if began.elapsed() > PATIENCE {
            let _ = running.kill();
            let _ = running.wait();
            panic!("{} did not end", browser.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::read_to_string(home.join("dom.html")).expect("text")
}

/// The report that is in the page.
fn embedded(page: &str) -> Value {
    let (_, rest) = page
        .split_once("<script type=\"application/json\" id=\"report\">")
        .expect("a report in the page");
    let (json, _) = rest.split_once("</script>").expect("its end");
    serde_json::from_str(json).expect("JSON")
}

/// The value of an attribute of a tag.
fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    Some(rest.split_once('"')?.0)
}

fn plain(html: &str) -> String {
    let quoted = html.replace("&quot;", "\"").replace("&#39;", "'");
    let tags = quoted.replace("&lt;", "<").replace("&gt;", ">");
    tags.replace("&amp;", "&")
}

/// Compares every figure that the page shows with the report; how many of each kind.
fn compare(dom: &str, report: &Value) -> (usize, usize) {
    let (mut times, mut others) = (0, 0);
    for rest in dom.split('<').skip(1) {
        let (tag, text) = rest.split_once('>').unwrap_or((rest, ""));
        let Some(path) = attribute(tag, "data-path") else {
            continue;
        };
        let path = plain(path);
        let found = report.pointer(&format!("/{}", path.replace('.', "/")));
        let found = found.unwrap_or_else(|| panic!("{path} is not in the report"));
        if let Some(ns) = attribute(tag, "data-ns") {
            assert_eq!(found.to_string(), ns, "{path}");
            // Microseconds to a tenth, as it is read.
            let shown: f64 = text.replace(',', "").parse().expect("a number");
            let ns: f64 = ns.parse().expect("a number");
            assert!(
                (shown * 1000.0 - ns).abs() <= 50.0,
                "{path}: {shown} of {ns}"
            );
            times += 1;
        } else {
            let value = attribute(tag, "data-value").expect("one or the other");
            let value: Value = serde_json::from_str(&plain(value)).expect("JSON");
            assert_eq!(found, &value, "{path}");
            assert!(!text.trim().is_empty(), "{path} is not shown");
            others += 1;
        }
    }
    (times, others)
}

#[test]
fn a_browser_shows_the_figures_of_the_run_and_its_charts() {
    let Some(browser) = browser() else {
        return skip(
            "a_browser_shows_the_figures_of_the_run_and_its_charts",
            "there is no chromium, chromium-browser or google-chrome in PATH",
        );
    };
    let run = measured();
    let dom = dom(&browser, run.home.path(), "run.html");
    let report = embedded(&dom);
    assert_eq!(report, run.json, "the page's report and the file's");
    let (times, others) = compare(&dom, &run.json);
    // Four times, and two limits before and after, with six quantiles each.
    assert_eq!(times, 8 * 6);
    assert!(others > 50, "{others}");
    let charts = dom.matches("role=\"img\"").count();
    assert!(charts >= 4, "{charts}");
    let verdict = match run.json["valid"].as_bool() {
        Some(true) => ">VALID<",
        _ => ">INVALID<",
    };
    assert!(dom.contains(verdict), "{verdict}");
}

#[test]
fn a_page_needs_no_network_and_replaces_one_that_is_there_when_it_is_whole() {
    let run = measured();
    assert_eq!(embedded(&run.page), run.json);
    for reference in ["src=", "href=", "url(", "@import", "http:", "https:"] {
        assert!(!run.page.contains(reference), "{reference}");
    }
    // The browser would refuse it, too.
    assert!(run.page.contains("default-src 'none'"));
    let mut files: Vec<_> = std::fs::read_dir(run.home.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    files.sort();
    assert_eq!(files, ["run.html", "run.json"]);
}

#[test]
fn a_page_that_cannot_be_written_is_refused_before_anything_is_measured() {
    let home = TempDir::new_in(data_root()).expect("a folder");
    for (args, words) in [
        (
            &["--report", "absent/run.html"][..],
            "--report absent/run.html",
        ),
        (&["--report", "x", "--json", "x"], "name one file"),
        (&["--report", "x", "--closed-loop"], "--closed-loop"),
    ] {
        let all = [&["bench", "--duration", "3600"], args].concat();
        let refused = Cli::without_server().run_in(home.path(), &all).failed();
        assert_eq!(refused.code(), exit::USAGE, "{refused:?}");
        assert!(refused.stderr.contains(words), "{refused:?}");
        let files = std::fs::read_dir(home.path()).expect("a folder").count();
        assert_eq!(files, 0, "{args:?}");
    }
}

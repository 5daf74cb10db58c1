//! The snippets of `docs/receivers.md` and the manifests in `examples/receivers`, each tested with deliveries of a real
//! operator.

mod native;
mod standard;

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::HeaderMap;
use llmtune_webhooks_harness::{
    process::temporary_folder,
    receiver::{Answer, Received, Receiver},
    root,
};
use serde_json::{Value, json, value::RawValue};

use crate::{
    documents::script::{Script, Shell},
    formats::{headers, whsec},
    support::{SOON, Scene, libraries, printed, run},
};

const NATIVE: &str = "The native format";
const STANDARD: &str = "Standard Webhooks";
const CLOUD_EVENTS: &str = "CloudEvents";
const SIGNATURES: [&str; 3] = ["x-llmtune-signature", "x-hub-signature-256", "x-signature"];

/// The guide's code in this language under this heading.
fn snippet(section: &str, language: &str) -> String {
    let guide = fs::read_to_string(root().join("docs/receivers.md")).unwrap();
    let sections = guide.split("\n## ").find(|text| text.starts_with(&format!("{section}\n")));
    let after = sections.unwrap().split_once(&format!("\n```{language}\n")).unwrap().1;
    after.split_once("```").unwrap().0.to_owned()
}

/// The input of a receiver, and whether it must accept it.
struct Case {
    secret: String,
    /// The header that holds the signature.
    header: &'static str,
    headers: BTreeMap<String, String>,
    body: String,
    sound: bool,
}

impl Case {
    fn new(request: &Received, header: &'static str, secret: &str) -> Self {
        let headers = headers(request).into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { secret: secret.to_owned(), header, headers, body: request.body.clone(), sound: true }
    }

    /// The case itself, and forgeries of it: another body, another secret, another signature, a truncated signature, no
    /// signature.
    fn with_forgeries(self, other_secret: &str) -> Vec<Self> {
        let forged = |change: &dyn Fn(&mut Self)| {
            let mut case =
                Self { headers: self.headers.clone(), secret: self.secret.clone(), body: self.body.clone(), ..self };
            change(&mut case);
            Self { sound: false, ..case }
        };
        let signature = self.headers[self.header].clone();
        let mut cases = vec![
            forged(&|case| case.body = case.body.replace("llama", "mallory")),
            forged(&|case| other_secret.clone_into(&mut case.secret)),
        ];
        for wrong in
            [signature.replace(['a', '1', '4', '7'], "b"), signature[..signature.len() - 2].to_owned(), String::new()]
        {
            cases.push(forged(&|case| {
                case.headers.insert(case.header.to_owned(), wrong.clone());
            }));
        }
        cases.push(self);
        cases
    }

    fn json(&self) -> Value {
        json!({"secret": self.secret, "header": self.header, "headers": self.headers, "body": self.body})
    }
}

fn input(cases: &[Case]) -> String {
    json!(cases.iter().map(Case::json).collect::<Vec<_>>()).to_string()
}

fn assert_judged(language: &str, cases: &[Case], verdicts: &[bool]) {
    assert_eq!(cases.len(), verdicts.len());
    for (case, verdict) in cases.iter().zip(verdicts) {
        assert_eq!(*verdict, case.sound, "{language}: {:#}", case.json());
    }
}

/// The output of a program in Node.
fn node(program: &str, input: &str) -> Value {
    let folder = temporary_folder("node");
    std::os::unix::fs::symlink(libraries("javascript").join("node_modules"), folder.join("node_modules")).unwrap();
    let file = folder.join("program.mjs");
    fs::write(&file, program).unwrap();
    serde_json::from_str(&printed(Command::new("node").arg(file), input)).unwrap()
}

/// The output of a program in Python.
fn python(program: &str, input: &str) -> Value {
    let file = temporary_folder("python").join("program.py");
    fs::write(&file, program).unwrap();
    let mut command = Command::new("python3");
    serde_json::from_str(&printed(command.arg(file).env("PYTHONPATH", libraries("python")), input)).unwrap()
}

/// The output of a program in Go that consists of these files.
fn go(files: &[(&str, String)], input: &str) -> Value {
    let folder = temporary_folder("go");
    for pins in ["go.mod", "go.sum"] {
        fs::copy(root().join("tests/libraries/go").join(pins), folder.join(pins)).unwrap();
    }
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    serde_json::from_str(&printed(Command::new("go").args(["run", "."]).current_dir(folder), input)).unwrap()
}

fn driver(file: &str) -> String {
    fs::read_to_string(root().join("tests/integration/guide").join(file)).unwrap()
}

fn verdicts(answers: Value) -> Vec<bool> {
    serde_json::from_value(answers).unwrap()
}

/// The deliveries of one event to Webhooks of these specs.
async fn deliveries(name: &str, secrets: &[(&str, &str)], specs: &[Value]) -> Vec<Received> {
    let scene = Scene::new(name).await;
    for (secret, value) in secrets {
        scene.secret(secret, value);
    }
    let mut receivers = Vec::new();
    for (number, spec) in specs.iter().enumerate() {
        let receiver = Receiver::start().await;
        scene.webhook(&format!("hook-{number}"), &receiver.url(), spec);
        receivers.push(receiver);
    }
    let _operator = scene.operator().await;
    for number in 0..specs.len() {
        scene.wait(&format!("webhook/hook-{number}"), "condition=Ready");
    }
    scene.job("llama");
    scene.job_status("llama", &json!({"phase": "Completed", "metrics": {"<&>": 1e21, "line\u{2028}end": "é😀\"\\"}}));
    let mut requests = Vec::new();
    for receiver in &receivers {
        requests.extend(receiver.wait(1, SOON).await);
    }
    requests
}

#[test]
fn guide_verifies_the_native_format_in_four_languages() {
    run(async {
        let spec = json!({"secretRef": {"name": "ci-hook"}});
        let requests = deliveries("guide-native", &[("ci-hook", "s3cret")], &[spec]).await;
        let cases: Vec<Case> = SIGNATURES
            .iter()
            .flat_map(|header| Case::new(&requests[0], header, "s3cret").with_forgeries("an0ther"))
            .collect();
        let input = input(&cases);

        let main = "\nimport { readFileSync } from \"node:fs\";\n\
            const cases = JSON.parse(readFileSync(0, \"utf8\"));\n\
            console.log(JSON.stringify(cases.map((c) => verify(Buffer.from(c.body), c.headers[c.header], c.secret))));\n";
        let answers = node(&(snippet(NATIVE, "js") + main), &input);
        assert_judged("Node", &cases, &verdicts(answers));

        let main = "\nimport json, sys\n\
            cases = json.load(sys.stdin)\n\
            print(json.dumps([verify(c['body'].encode(), c['headers'][c['header']], c['secret'].encode()) for c in cases]))\n";
        let answers = python(&(snippet(NATIVE, "python") + main), &input);
        assert_judged("Python", &cases, &verdicts(answers));

        let answers = go(&[("verify.go", snippet(NATIVE, "go")), ("main.go", driver("native.go"))], &input);
        assert_judged("Go", &cases, &verdicts(answers));

        assert_eq!(
            snippet(NATIVE, "rust"),
            include_str!("guide/native.rs"),
            "the guide's code is the code that is tried"
        );
        let verify =
            |case: &Case| native::verify(case.body.as_bytes(), &case.headers[case.header], case.secret.as_bytes());
        assert_judged("Rust", &cases, &cases.iter().map(verify).collect::<Vec<_>>());
    });
}

#[test]
fn the_guide_verifies_standard_webhooks_in_four_languages() {
    run(async {
        let secret = whsec(7, 32);
        let spec = json!({"format": "StandardWebhooks", "secretRef": {"name": "ci-hook"}});
        let requests = deliveries("guide-standard", &[("ci-hook", &secret)], &[spec]).await;
        let cases = Case::new(&requests[0], "webhook-signature", &secret).with_forgeries(&whsec(8, 32));
        let input = input(&cases);

        let main = "\nimport { readFileSync } from \"node:fs\";\n\
            const judge = (c) => { try { return verify(c.body, c.headers, c.secret).type === \"training.completed\" } catch { return false } };\n\
            console.log(JSON.stringify(JSON.parse(readFileSync(0, \"utf8\")).map(judge)));\n";
        let answers = node(&(snippet(STANDARD, "js") + main), &input);
        assert_judged("Node", &cases, &verdicts(answers));

        let main = "\nimport json, sys\n\
            def judge(c):\n\
            \x20   try:\n\
            \x20       return verify(c['body'].encode(), c['headers'], c['secret'])['type'] == 'training.completed'\n\
            \x20   except Exception:\n\
            \x20       return False\n\
            print(json.dumps([judge(c) for c in json.load(sys.stdin)]))\n";
        let answers = python(&(snippet(STANDARD, "python") + main), &input);
        assert_judged("Python", &cases, &verdicts(answers));

        let answers = go(&[("verify.go", snippet(STANDARD, "go")), ("main.go", driver("standard.go"))], &input);
        assert_judged("Go", &cases, &verdicts(answers));

        assert_eq!(
            snippet(STANDARD, "rust"),
            include_str!("guide/standard.rs"),
            "the guide's code is the code that is tried"
        );
        let verify = |case: &Case| {
            let headers = case.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            standard::verify(case.body.as_bytes(), &headers.collect::<HeaderMap>(), &case.secret).is_ok()
        };
        assert_judged("Rust", &cases, &cases.iter().map(verify).collect::<Vec<_>>());
    });
}

#[test]
fn the_guide_verifies_and_reads_cloud_events_in_both_modes() {
    run(async {
        let spec = json!({"format": "CloudEvents", "secretRef": {"name": "ci-hook"}});
        let mut binary = spec.clone();
        binary["cloudEvents"] = json!({"mode": "Binary"});
        let requests = deliveries("guide-cloudevents", &[("ci-hook", "s3cret")], &[spec, binary]).await;
        let cases: Vec<Case> = requests
            .iter()
            .flat_map(|request| Case::new(request, SIGNATURES[0], "s3cret").with_forgeries("an0ther"))
            .collect();
        let input = input(&cases);

        let main = "\nimport { readFileSync } from \"node:fs\";\n\
            const judge = (c) => verify(Buffer.from(c.body), c.headers[c.header], c.secret) && read(c.headers, c.body).type === \"io.llmtune.training.completed\";\n\
            console.log(JSON.stringify(JSON.parse(readFileSync(0, \"utf8\")).map(judge)));\n";
        let answers = node(&(snippet(NATIVE, "js") + &snippet(CLOUD_EVENTS, "js") + main), &input);
        assert_judged("Node", &cases, &verdicts(answers));

        let main = "\nimport json, sys\n\
            def judge(c):\n\
            \x20   body = c['body'].encode()\n\
            \x20   genuine = verify(body, c['headers'][c['header']], c['secret'].encode())\n\
            \x20   return genuine and read(c['headers'], body).get_type() == 'io.llmtune.training.completed'\n\
            print(json.dumps([judge(c) for c in json.load(sys.stdin)]))\n";
        let answers = python(&(snippet(NATIVE, "python") + &snippet(CLOUD_EVENTS, "python") + main), &input);
        assert_judged("Python", &cases, &verdicts(answers));
    });
}

/// The commands of the guide create Secrets, and replace one without losing a delivery.
pub async fn play(scripts: &mut [Script]) {
    let [guide] = scripts else { unreachable!("one document") };
    let scene = Scene::new("replacing").await;
    let shell = Shell::new(&scene);
    let key = |name: &str| {
        let bytes = BASE64.decode(scene.get("secret", "ci-hook")["data"][name].as_str()?).unwrap();
        Some(String::from_utf8(bytes).unwrap())
    };
    shell.run(&guide.take(STANDARD));
    let symmetric = BASE64.decode(key("secret").unwrap().strip_prefix("whsec_").unwrap()).unwrap();
    assert_eq!(symmetric.len(), 32);
    scene.kubectl(&["delete", "secret", "ci-hook"]);

    shell.run(&guide.take(NATIVE));
    let old = key("secret").unwrap();
    shell.run(&guide.take("Replacing the secret"));
    let new = key("secret").unwrap();
    assert_eq!((new.len(), key("previous").as_deref()), (64, Some(old.as_str())));

    let known = new.clone();
    let receiver =
        Receiver::answering(move |post| Answer::status(if post.is_signed_with(&known) { 200 } else { 401 })).await;
    scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci-hook"}, "delivery": {"maxRetries": 0}}));
    let _operator = scene.operator().await;
    scene.wait("webhook/ci", "condition=Ready");
    scene.job("llama");
    scene.phase("llama", "Running");
    let posts = receiver.wait(2, SOON).await;
    assert!(posts[0].is_signed_with(&old) && posts[1].is_signed_with(&new));
    scene.wait("webhook/ci", "condition=Healthy");
    shell.run(&guide.take("Replacing the secret"));
    assert_eq!((key("secret"), key("previous")), (Some(new), None));
}

/// The objects of an example.
fn manifests(file: &str) -> Vec<Value> {
    let path: PathBuf = root().join("examples/receivers").join(file);
    let text = fs::read_to_string(path).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// The object of this kind among them.
fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap()
}

#[test]
fn flux_tekton_and_argo_events_verify_deliveries() {
    run(async {
        let scene = Scene::new("systems").await;
        let mut receivers = Vec::new();
        for file in ["flux.yaml", "tekton.yaml", "argo-events.yaml"] {
            let objects = manifests(file);
            let receiver = Receiver::start().await;
            let mut webhook = of_kind(&objects, "Webhook").clone();
            webhook["spec"]["url"] = receiver.url().into();
            scene.apply(of_kind(&objects, "Secret"));
            scene.apply(&webhook);
            receivers.push((objects, webhook, receiver));
        }
        let _operator = scene.operator().await;
        for (_, webhook, _) in &receivers {
            scene.wait(&format!("webhook/{}", webhook["metadata"]["name"].as_str().unwrap()), "condition=Ready");
        }
        scene.job("llama");
        scene.job_status(
            "llama",
            &json!({"phase": "Completed", "metrics": {"<&>": 1e21, "line\u{2028}end": "é😀\"\\"}}),
        );
        scene.apply(&crate::sources::deployment("llama", 1, "1"));
        crate::sources::rolled_out(&scene, "llama");

        for (objects, webhook, receiver) in &receivers {
            let requests = receiver.wait(1, SOON).await;
            let reference = &webhook["spec"]["secretRef"];
            let secret = &of_kind(objects, "Secret")["stringData"][reference["key"].as_str().unwrap_or("secret")];
            let secret = secret.as_str().unwrap();
            let header = match webhook["metadata"]["name"].as_str().unwrap() {
                "flux" => {
                    let spec = &of_kind(objects, "Receiver")["spec"];
                    assert_eq!(
                        (&spec["type"], &spec["secretRef"]["name"]),
                        (&json!("generic-hmac"), &reference["name"])
                    );
                    assert_eq!(reference["key"], "token", "the key that Flux reads");
                    "x-signature"
                }
                "tekton" => {
                    let interceptor = &of_kind(objects, "EventListener")["spec"]["triggers"][0]["interceptors"][0];
                    let named = &interceptor["params"][0]["value"];
                    assert_eq!(
                        (&interceptor["ref"]["name"], &named["secretName"]),
                        (&json!("github"), &reference["name"])
                    );
                    assert_eq!(named["secretKey"], "secret");
                    "x-hub-signature-256"
                }
                _ => "x-llmtune-signature",
            };
            let cases: Vec<Case> = requests
                .iter()
                .flat_map(|request| Case::new(request, header, secret).with_forgeries("an0ther"))
                .collect();
            let answers = go(&[("main.go", driver("systems.go"))], &input(&cases));
            let answers = answers.as_array().unwrap();
            if header != "x-llmtune-signature" {
                let verdicts: Vec<bool> = answers.iter().map(|answer| answer["valid"].as_bool().unwrap()).collect();
                assert_judged(header, &cases, &verdicts);
                continue;
            }
            let job = &of_kind(objects, "Sensor")["spec"]["triggers"][0]["template"]["k8s"];
            let container = &job["source"]["resource"]["spec"]["template"]["spec"]["containers"][0];
            let script = container["command"][2].as_str().unwrap();
            let parameters: Vec<&str> =
                (0..2).map(|number| job["parameters"][number]["src"]["dataKey"].as_str().unwrap()).collect();
            assert_eq!(parameters, ["body", "header.X-Llmtune-Signature.0"]);
            for (case, answer) in cases.iter().zip(answers) {
                let event = answer["argo"].as_str().unwrap();
                let text: BTreeMap<String, Box<RawValue>> = serde_json::from_str(event).unwrap();
                let headers: Value = serde_json::from_str(text["header"].get()).unwrap();
                let mut command = Command::new("node");
                command.args(["-e", script]).env("BODY", text["body"].get()).env("SECRET", &case.secret);
                command.env("SIGNATURE", headers["X-Llmtune-Signature"][0].as_str().unwrap());
                let output = command.output().unwrap();
                assert_eq!(output.status.success(), case.sound, "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    });
}

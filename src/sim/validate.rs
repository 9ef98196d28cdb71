//! Prompt validation with the recorded errors: which nodes are missing or wrong, which outputs
//! may run, and inputs converted to their declared types as they will stand in `/queue`.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::nodes::{Class, Nodes, recorded};
use super::reply::python_json;
use crate::comfy::lenient::truthy;

/// Links are followed this deep, as Python's recursion limit would stop them too.
const MAX_DEPTH: usize = 64;
/// Longer lists of choices are not repeated in an error.
const MAX_CHOICES_TOLD: usize = 20;

/// What validation found of a prompt that may run.
#[derive(Debug)]
pub(super) struct Valid {
    /// Output nodes to run.
    pub(super) outputs: Vec<String>,
    /// Errors of the outputs that will be ignored.
    pub(super) node_errors: Map<String, Value>,
}

/// A Python exception: its type and text.
struct Raised(&'static str, String);

/// Checks a prompt against the server's `nodes` and converts its inputs in place, or gives the
/// body of the 400; `targets` are `partial_execution_targets`, `image_exists` says whether
/// `LoadImage` could open a name.
pub(super) fn validate(
    nodes: &Nodes,
    prompt: &mut Map<String, Value>,
    targets: Option<&[String]>,
    image_exists: &dyn Fn(&str) -> bool,
) -> Result<Valid, Value> {
    let wanted = wanted_outputs(nodes, prompt, targets)?;
    let mut check = Check { nodes, prompt, image_exists, seen: Vec::new(), known: HashMap::new() };
    let mut valid = Valid { outputs: Vec::new(), node_errors: Map::new() };
    let mut lines = Vec::new();
    for output in wanted {
        let reasons = match check.node(&output, 0) {
            Ok(()) => {
                valid.outputs.push(output);
                continue;
            }
            Err(Trouble::Known) => check.reasons(&output),
            Err(Trouble::Raised(raised)) => {
                let reasons = vec![exception_outside(&raised)];
                check.note(&output, Some(reasons.clone()));
                reasons
            }
        };
        lines.extend(
            reasons.iter().map(|reason| {
                format!("{}: {}", plain(&reason["message"]), plain(&reason["details"]))
            }),
        );
        check.attach(&output, &mut valid.node_errors);
    }
    if valid.outputs.is_empty() {
        let message = "Prompt outputs failed validation";
        let error =
            error("prompt_outputs_failed_validation", message, &lines.join("\n"), json!({}));
        return Err(refusal(error, valid.node_errors));
    }
    Ok(valid)
}

/// The body of a refusal of the whole prompt.
pub(super) fn refusal(error: Value, node_errors: Map<String, Value>) -> Value {
    [("error".to_owned(), error), ("node_errors".to_owned(), node_errors.into())]
        .into_iter()
        .collect::<Map<_, _>>()
        .into()
}

/// An error as ComfyUI shapes it.
pub(super) fn error(kind: &str, message: &str, details: &str, extra_info: Value) -> Value {
    let mut error = json!({"type": kind, "message": message, "details": details});
    error["extra_info"] = extra_info;
    error
}

fn wanted_outputs(
    nodes: &Nodes,
    prompt: &Map<String, Value>,
    targets: Option<&[String]>,
) -> Result<Vec<String>, Value> {
    let mut outputs = Vec::new();
    for (id, node) in prompt {
        let details = format!("Node ID '#{id}'");
        let refused = |message: &str| {
            refusal(error("invalid_prompt", message, &details, json!({})), Map::new())
        };
        let Some(class_type) = node.get("class_type") else {
            let message = "Cannot execute because a node is missing the class_type property.";
            return Err(refused(message));
        };
        let Some(class) = class_type.as_str().and_then(|name| nodes.class(name)) else {
            let name = plain(class_type);
            return Err(refused(&format!("Cannot execute because node {name} does not exist.")));
        };
        if class.is_output() && targets.is_none_or(|targets| targets.contains(id)) {
            outputs.push(id.clone());
        }
    }
    if outputs.is_empty() {
        let error = error("prompt_no_outputs", "Prompt has no outputs", "", json!({}));
        return Err(refusal(error, Map::new()));
    }
    Ok(outputs)
}

/// Why a node is not valid.
enum Trouble {
    /// Its own reasons, or those of a node before it, are noted.
    Known,
    /// An exception on the way.
    Raised(Raised),
}

struct Check<'a> {
    nodes: &'a Nodes,
    prompt: &'a mut Map<String, Value>,
    image_exists: &'a dyn Fn(&str) -> bool,
    /// Ids in the order their checks ended.
    seen: Vec<String>,
    /// Per id: `None` when valid, else its own reasons (none when only a node before it fails).
    known: HashMap<String, Option<Vec<Value>>>,
}

impl Check<'_> {
    fn reasons(&self, id: &str) -> Vec<Value> {
        self.known.get(id).cloned().flatten().unwrap_or_default()
    }

    fn note(&mut self, id: &str, reasons: Option<Vec<Value>>) {
        if self.known.insert(id.to_owned(), reasons).is_none() {
            self.seen.push(id.to_owned());
        }
    }

    /// Adds every failed node seen so far to `node_errors`, on behalf of `output`.
    fn attach(&self, output: &str, node_errors: &mut Map<String, Value>) {
        for id in &self.seen {
            let reasons = self.reasons(id);
            if reasons.is_empty() {
                continue;
            }
            let class_type = &self.prompt[id]["class_type"];
            let entry = node_errors.entry(id.clone()).or_insert_with(
                || json!({"errors": reasons, "dependent_outputs": [], "class_type": class_type}),
            );
            if let Some(dependents) = entry["dependent_outputs"].as_array_mut() {
                dependents.push(output.into());
            }
        }
    }

    fn node(&mut self, id: &str, depth: usize) -> Result<(), Trouble> {
        if let Some(known) = self.known.get(id) {
            return if known.is_none() { Ok(()) } else { Err(Trouble::Known) };
        }
        if depth > MAX_DEPTH {
            return Err(raised("RecursionError", "maximum recursion depth exceeded"));
        }
        let node = self.prompt.get(id).ok_or_else(|| raised("KeyError", format!("'{id}'")))?;
        let class = class_of(self.nodes, node)?;
        let mut inputs = match node.get("inputs") {
            Some(Value::Object(inputs)) => inputs.clone(),
            Some(_) => return Err(raised("TypeError", "argument of type is not iterable")),
            None => return Err(raised("KeyError", "'inputs'")),
        };
        let mut errors = Vec::new();
        let mut before_fails = false;
        for (name, spec, required) in class.inputs() {
            match inputs.get_mut(name) {
                None if required => errors.push(missing(name)),
                None => {}
                Some(Value::Array(link)) => {
                    let link = link.clone();
                    match self.link(name, spec, &link, depth) {
                        Ok(None) => {}
                        Ok(Some(error)) => errors.push(error),
                        Err(Trouble::Known) => before_fails = true,
                        Err(raised) => return Err(raised),
                    }
                }
                Some(value) => errors.extend(literal(name, spec, value, self.image_exists)),
            }
        }
        self.prompt[id]["inputs"] = Value::Object(inputs);
        if errors.is_empty() && !before_fails {
            self.note(id, None);
            return Ok(());
        }
        self.note(id, Some(errors));
        Err(Trouble::Known)
    }

    /// Checks an input that takes another node's result.
    fn link(
        &mut self,
        name: &str,
        spec: &Value,
        link: &[Value],
        depth: usize,
    ) -> Result<Option<Value>, Trouble> {
        let [from, slot] = link else {
            let message = "Bad linked input, must be a length-2 list of [node_id, slot_index]";
            let extra = json!({"input_name": name, "input_config": spec, "received_value": link});
            return Ok(Some(error("bad_linked_input", message, name, extra)));
        };
        let from = from.as_str().ok_or_else(|| raised("KeyError", python_json(from)))?;
        let node = self.prompt.get(from).ok_or_else(|| raised("KeyError", format!("'{from}'")))?;
        let class = class_of(self.nodes, node)?;
        let slot = slot.as_u64().and_then(|slot| usize::try_from(slot).ok());
        let received = slot
            .and_then(|slot| class.output(slot))
            .ok_or_else(|| raised("IndexError", "tuple index out of range"))?;
        let expected = plain(&spec[0]);
        if received != expected {
            let details =
                format!("{name}, received_type({received}) mismatch input_type({expected})");
            let extra = json!({
                "input_name": name, "input_config": spec,
                "received_type": received, "linked_node": link,
            });
            let message = "Return type mismatch between linked nodes";
            return Ok(Some(error("return_type_mismatch", message, &details, extra)));
        }
        match self.node(from, depth + 1) {
            Ok(()) => Ok(None),
            Err(Trouble::Known) => Err(Trouble::Known),
            Err(Trouble::Raised(Raised(kind, text))) => {
                let extra = json!({
                    "input_name": name, "input_config": spec, "exception_message": text,
                    "exception_type": kind, "traceback": recorded("validation_traceback"),
                    "linked_node": link,
                });
                let kind = "exception_during_inner_validation";
                let reason = error(kind, "Exception when validating inner node", &text, extra);
                let from = from.to_owned();
                self.note(&from, Some(vec![reason]));
                Err(Trouble::Known)
            }
        }
    }
}

fn class_of<'a>(nodes: &'a Nodes, node: &Value) -> Result<Class<'a>, Trouble> {
    let name = node.get("class_type").and_then(Value::as_str).unwrap_or_default();
    nodes.class(name).ok_or_else(|| raised("KeyError", format!("'{name}'")))
}

fn raised(kind: &'static str, text: impl Into<String>) -> Trouble {
    Trouble::Raised(Raised(kind, text.into()))
}

fn exception_outside(raised: &Raised) -> Value {
    let extra = json!({"exception_type": raised.0, "traceback": recorded("validation_traceback")});
    let kind = "exception_during_validation";
    error(kind, "Exception when validating node", &raised.1, extra)
}

fn missing(name: &str) -> Value {
    let extra = json!({"input_name": name});
    error("required_input_missing", "Required input is missing", name, extra)
}

/// Converts and checks a value given in place.
fn literal(
    name: &str,
    spec: &Value,
    value: &mut Value,
    image_exists: &dyn Fn(&str) -> bool,
) -> Option<Value> {
    if let Some(inner) = value.get("__value__") {
        *value = inner.clone();
    }
    let kind = spec[0].as_str().unwrap_or("COMBO");
    match convert(kind, value) {
        Ok(converted) => *value = converted,
        Err(text) => {
            let message = format!("Failed to convert an input value to a {kind} value");
            let details = format!("{name}, {}, {text}", plain(value));
            let extra = json!({
                "input_name": name, "input_config": spec,
                "received_value": value, "exception_message": text,
            });
            return Some(error("invalid_input_type", &message, &details, extra));
        }
    }
    if spec[1].get("image_upload").is_some() {
        let image = plain(value);
        if image_exists(&image) {
            return None;
        }
        let details = format!("{name} - Invalid image file: {image}");
        let extra = json!({"input_name": name});
        let message = "Custom validation failed for node";
        return Some(error("custom_validation_failed", message, &details, extra));
    }
    not_offered(name, spec, value).or_else(|| out_of_bounds(name, spec, value))
}

/// A choice that is not in the list.
fn not_offered(name: &str, spec: &Value, value: &Value) -> Option<Value> {
    let choices = spec[0].as_array()?;
    if choices.contains(value) {
        return None;
    }
    // Upstream does not send long lists back.
    let long = choices.len() > MAX_CHOICES_TOLD;
    let (told, config) = if long {
        (format!("(list of length {})", choices.len()), Value::Null)
    } else {
        (python_list(choices), spec.clone())
    };
    let details = format!("{name}: '{}' not in {told}", plain(value));
    let extra = json!({"input_name": name, "input_config": config, "received_value": value});
    Some(error("value_not_in_list", "Value not in list", &details, extra))
}

/// `str(list)` of a list of texts.
fn python_list(choices: &[Value]) -> String {
    let each: Vec<String> = choices.iter().map(|choice| format!("'{}'", plain(choice))).collect();
    format!("[{}]", each.join(", "))
}

fn out_of_bounds(name: &str, spec: &Value, value: &Value) -> Option<Value> {
    let number = value.as_f64()?;
    let options = &spec[1];
    let extra = json!({"input_name": name, "input_config": spec, "received_value": value});
    if options["min"].as_f64().is_some_and(|min| number < min) {
        let message = format!("Value {value} smaller than min of {}", options["min"]);
        return Some(error("value_smaller_than_min", &message, name, extra));
    }
    if options["max"].as_f64().is_some_and(|max| number > max) {
        let message = format!("Value {value} bigger than max of {}", options["max"]);
        return Some(error("value_bigger_than_max", &message, name, extra));
    }
    None
}

/// `int(value)`, `float(value)`, `str(value)`, `bool(value)`.
fn convert(kind: &str, value: &Value) -> Result<Value, String> {
    match kind {
        "INT" => match value {
            Value::Number(number) if !number.is_f64() => Ok(value.clone()),
            Value::Number(number) => Ok(json!(number.as_f64().unwrap_or_default().trunc() as i64)),
            Value::Bool(on) => Ok(json!(i64::from(*on))),
            Value::String(text) => {
                let parsed = text.trim().parse::<i64>().map(Value::from);
                parsed.map_err(|_| format!("invalid literal for int() with base 10: '{text}'"))
            }
            other => Err(format!(
                "int() argument must be a string, a bytes-like object or a real number, not '{}'",
                python_type(other)
            )),
        },
        "FLOAT" => match value {
            Value::Number(number) => Ok(json!(number.as_f64().unwrap_or_default())),
            Value::Bool(on) => Ok(json!(f64::from(u8::from(*on)))),
            Value::String(text) => {
                let parsed = text.trim().parse::<f64>().map(Value::from);
                parsed.map_err(|_| format!("could not convert string to float: '{text}'"))
            }
            other => Err(format!(
                "float() argument must be a string or a real number, not '{}'",
                python_type(other)
            )),
        },
        "STRING" => Ok(Value::String(plain(value))),
        "BOOLEAN" => Ok(Value::Bool(truthy(value))),
        _ => Ok(value.clone()),
    }
}

/// `str(value)`, near enough for containers.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        other => python_json(other),
    }
}

fn python_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(prompt: Value, targets: Option<&[String]>) -> Result<(Valid, Value), Value> {
        let mut prompt = super::super::reply::object(prompt);
        let nodes = Nodes::new(&[], &["a.safetensors".to_owned()]);
        let valid = validate(&nodes, &mut prompt, targets, &|name| name == "there.png")?;
        Ok((valid, Value::Object(prompt)))
    }

    fn save(from: &Value) -> Value {
        json!({"class_type": "SaveImage", "inputs": {"images": from, "filename_prefix": "x"}})
    }

    fn first_error(prompt: Value, node: &str) -> Value {
        run(prompt, None).unwrap_err()["node_errors"][node]["errors"][0].clone()
    }

    #[test]
    fn inputs_are_converted_to_their_types() {
        let paced = json!({"class_type": "PacedImage", "inputs":
            {"seconds": 5, "steps": "3", "seed": 1.9, "fail_at": true, "preview": 0}});
        let (_, prompt) = run(json!({"1": paced, "2": save(&json!(["1", 0]))}), None).unwrap();
        let expected = r#"{"seconds": 5.0, "steps": 3, "seed": 1, "fail_at": 1, "preview": false}"#;
        assert_eq!(python_json(&prompt["1"]["inputs"]), expected);
    }

    #[test]
    fn a_failure_before_an_output_is_reported_where_it_is() {
        let load = json!({"class_type": "LoadImage", "inputs": {"image": "gone.png"}});
        let prompt = json!({"1": load, "2": save(&json!(["1", 0])), "3": save(&json!(["1", 0]))});
        let refused = run(prompt, None).unwrap_err();
        assert_eq!(refused["error"]["type"], "prompt_outputs_failed_validation");
        assert_eq!(refused["node_errors"].as_object().unwrap().len(), 1);
        assert_eq!(refused["node_errors"]["1"]["dependent_outputs"], json!(["2", "3"]));
    }

    #[test]
    fn each_kind_of_wrong_input_has_its_error() {
        let wrong = |from: Value| {
            first_error(
                json!({"1":
            {"class_type": "LoadImage", "inputs": {"image": "there.png"}}, "2": save(&from)}),
                "2",
            )
        };
        assert_eq!(wrong(json!(["1", 1]))["type"], "return_type_mismatch");
        assert_eq!(
            wrong(json!(["1", 1]))["details"],
            "images, received_type(MASK) mismatch input_type(IMAGE)"
        );
        assert_eq!(wrong(json!(["1"]))["type"], "bad_linked_input");
        assert_eq!(wrong(json!(["1", 7]))["extra_info"]["exception_type"], "IndexError");
        assert_eq!(wrong(json!(["9", 0]))["details"], "'9'");
        let none = json!({"2": {"class_type": "SaveImage", "inputs": {}}});
        assert_eq!(first_error(none, "2")["type"], "required_input_missing");
        let text = json!({"1": {"class_type": "EmptyImage", "inputs":
            {"width": "x", "height": 1, "batch_size": 1, "color": 0}}, "2": save(&json!(["1", 0]))});
        assert_eq!(first_error(text, "1")["type"], "invalid_input_type");
    }

    #[test]
    fn a_model_that_is_not_there_is_not_in_the_list() {
        let prompt = |model: &str| {
            let loader =
                json!({"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": model}});
            let paced = json!({"class_type": "PacedImage", "inputs": {"seconds": 1, "steps": 1,
                "seed": 1, "fail_at": -1, "preview": false, "model": ["1", 0]}});
            json!({"1": loader, "2": paced, "3": save(&json!(["2", 0]))})
        };
        assert!(run(prompt("a.safetensors"), None).is_ok());
        let error = first_error(prompt("b.safetensors"), "1");
        assert_eq!(error["type"], "value_not_in_list");
        assert_eq!(error["details"], "ckpt_name: 'b.safetensors' not in ['a.safetensors']");
    }

    #[test]
    fn partial_targets_choose_among_the_outputs() {
        let empty = json!({"class_type": "EmptyImage", "inputs":
            {"width": 8, "height": 8, "batch_size": 1, "color": 0}});
        let prompt = json!({"1": empty, "2": save(&json!(["1", 0])), "3": save(&json!(["1", 0]))});
        let (valid, _) = run(prompt.clone(), Some(&["3".to_owned(), "77".to_owned()])).unwrap();
        assert_eq!(valid.outputs, ["3"]);
        let refused = run(prompt, Some(&[])).unwrap_err();
        assert_eq!(refused["error"]["type"], "prompt_no_outputs");
    }
}

// The oracle for expressions: CEL in the environment of the Kubernetes apiserver.
//
//	cel-oracle conformance   evaluates the cases of cel.dev/expr and prints one JSON object per case
//	cel-oracle evaluate      reads {"expr": TEXT, "document": JSON} per line and prints one JSON object per line
//
// A value is printed with its type: {"int": "1"}, {"list": [...]}, {"map": [[key, value], ...]}, and so on.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"time"

	"cel.dev/expr"
	_ "cel.dev/expr/conformance/proto2"
	_ "cel.dev/expr/conformance/proto3"
	"cel.dev/expr/conformance/test"
	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"google.golang.org/protobuf/encoding/prototext"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/cel/environment"
)

type object = map[string]any

// The current apiserver's, whatever was built before it.
func environ() *cel.Env {
	env, err := environment.MustBaseEnvSet(version.MajorMinor(1, 37)).Env(environment.NewExpressions)
	must(err)
	return env
}

func main() {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	switch mode {
	case "conformance":
		conformance(os.Args[2], encoder)
	case "evaluate":
		debug.SetGCPercent(400)
		in := bufio.NewScanner(os.Stdin)
		in.Buffer(make([]byte, 1<<20), 1<<24)
		env, err := environ().Extend(cel.Variable("event", cel.StringType), cel.Variable("data", cel.DynType), cel.Variable("object", cel.DynType))
		must(err)
		for in.Scan() {
			var request struct {
				Expr     string
				Document json.RawMessage
			}
			must(json.Unmarshal(in.Bytes(), &request))
			document := plain(request.Document)
			must(encoder.Encode(evaluate(env, request.Expr, map[string]any{"event": "training.completed", "data": document, "object": document})))
		}
		must(in.Err())
	default:
		fmt.Fprintln(os.Stderr, "usage: cel-oracle conformance FOLDER | evaluate")
		os.Exit(2)
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// JSON as the apiserver decodes it: integers stay integers.
func plain(text []byte) ref.Val {
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()
	var value any
	must(decoder.Decode(&value))
	return converted(value)
}

// A value of CEL's own, all the way down: of Go's integers some functions make a mess.
func converted(value any) ref.Val {
	switch value := value.(type) {
	case json.Number:
		if !strings.ContainsAny(value.String(), ".eE") {
			if i, err := strconv.ParseInt(value.String(), 10, 64); err == nil {
				return types.Int(i)
			}
			if u, err := strconv.ParseUint(value.String(), 10, 64); err == nil {
				return types.Uint(u)
			}
		}
		f, _ := value.Float64()
		return types.Double(f)
	case []any:
		elements := make([]ref.Val, len(value))
		for i := range value {
			elements[i] = converted(value[i])
		}
		return types.NewRefValList(types.DefaultTypeAdapter, elements)
	case map[string]any:
		members := make(map[ref.Val]ref.Val, len(value))
		for key := range value {
			members[types.String(key)] = converted(value[key])
		}
		return types.NewRefValMap(types.DefaultTypeAdapter, members)
	}
	return types.DefaultTypeAdapter.NativeToValue(value)
}

func evaluate(env *cel.Env, text string, bindings map[string]any) (result object) {
	defer func() {
		if caught := recover(); caught != nil {
			result = object{"error": fmt.Sprint("panic: ", caught)}
		}
	}()
	ast, issues := env.Compile(text)
	if issues != nil && issues.Err() != nil {
		return object{"refused": issues.Err().Error()}
	}
	program, err := env.Program(ast)
	if err != nil {
		// What is constant is evaluated here.
		return object{"error": err.Error(), "constant": true}
	}
	value, _, err := program.Eval(bindings)
	if err != nil {
		return object{"error": err.Error()}
	}
	return object{"value": typed(value)}
}

// A value with its type. Members of maps are sorted by their keys' texts.
func typed(value ref.Val) any {
	switch value := value.(type) {
	case types.Null:
		return object{"null": true}
	case types.Bool:
		return object{"bool": bool(value)}
	case types.Int:
		return object{"int": strconv.FormatInt(int64(value), 10)}
	case types.Uint:
		return object{"uint": strconv.FormatUint(uint64(value), 10)}
	case types.Double:
		if math.IsNaN(float64(value)) {
			return object{"double": "NaN"}
		}
		return object{"double": fmt.Sprintf("%016x", math.Float64bits(float64(value)))}
	case types.String:
		return object{"string": string(value)}
	case types.Bytes:
		return object{"bytes": base64.StdEncoding.EncodeToString([]byte(value))}
	case types.Timestamp:
		return object{"timestamp": value.Time.UTC().Format(time.RFC3339Nano)}
	case types.Duration:
		return object{"duration": strconv.FormatInt(int64(value.Duration), 10)}
	case *types.Optional:
		if !value.HasValue() {
			return object{"optional": []any{}}
		}
		return object{"optional": []any{typed(value.GetValue())}}
	case *types.Type:
		return object{"type": value.TypeName()}
	case traits.Mapper:
		members := [][2]any{}
		for it := value.Iterator(); it.HasNext() == types.True; {
			key := it.Next()
			members = append(members, [2]any{typed(key), typed(value.Get(key))})
		}
		sort.Slice(members, func(i, j int) bool {
			return fmt.Sprint(members[i][0]) < fmt.Sprint(members[j][0])
		})
		return object{"map": members}
	case traits.Lister:
		elements := []any{}
		for it := value.Iterator(); it.HasNext() == types.True; {
			elements = append(elements, typed(it.Next()))
		}
		return object{"list": elements}
	}
	if text, ok := value.Value().(fmt.Stringer); ok {
		return object{"other": value.Type().TypeName(), "text": text.String()}
	}
	return object{"other": value.Type().TypeName(), "text": fmt.Sprint(value.Value())}
}

func conformance(folder string, encoder *json.Encoder) {
	files, err := filepath.Glob(filepath.Join(folder, "*.textproto"))
	must(err)
	sort.Strings(files)
	for _, name := range files {
		text, err := os.ReadFile(name)
		must(err)
		file := &test.SimpleTestFile{}
		must(prototext.Unmarshal(text, file))
		for _, section := range file.Section {
			for _, one := range section.Test {
				result := run(one)
				result["name"] = file.Name + "/" + section.Name + "/" + one.Name
				result["expr"] = one.Expr
				must(encoder.Encode(result))
			}
		}
	}
}

// One case: whether the apiserver passes it, and what it makes of it.
func run(one *test.SimpleTest) object {
	env := environ()
	options := []cel.EnvOption{}
	variables := object{}
	for _, declaration := range one.TypeEnv {
		if declaration.GetIdent() == nil {
			return object{"out": "a function of its own"}
		}
		kind, err := cel.ProtoAsDeclaration(declaration)
		if err != nil {
			return object{"out": err.Error()}
		}
		options = append(options, kind)
		variables[declaration.Name] = declaration.GetIdent().Type.String()
	}
	bindings := map[string]any{}
	documents := object{}
	for name, bound := range one.Bindings {
		value, err := cel.ProtoAsValue(env.CELTypeAdapter(), bound.GetValue())
		if bound.GetValue() == nil || err != nil {
			return object{"out": "a binding that is not a value"}
		}
		bindings[name] = value
		documents[name] = typed(value)
		if text, _ := json.Marshal(documents[name]); strings.Contains(string(text), "\"other\"") {
			return object{"out": "a message"}
		}
	}
	if one.Container != "" {
		options = append(options, cel.Container(one.Container))
	}
	env, err := env.Extend(options...)
	if err != nil {
		return object{"out": err.Error()}
	}
	if parsed, issues := env.Parse(one.Expr); issues.Err() == nil && messages(parsed) {
		return object{"out": "a message"}
	}
	if one.DisableCheck {
		return object{"out": "unchecked"}
	}
	result := evaluate(env, one.Expr, bindings)
	result["passes"] = passes(one, result, env)
	result["bindings"] = documents
	result["variables"] = variables
	return result
}

// Whether an expression makes a message.
func messages(parsed *cel.Ast) bool {
	found := false
	ast.PostOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		found = found || e.Kind() == ast.StructKind
	}))
	return found
}

func passes(one *test.SimpleTest, result object, env *cel.Env) bool {
	value, yields := result["value"]
	var wanted *expr.Value
	switch matcher := one.ResultMatcher.(type) {
	case *test.SimpleTest_EvalError:
		return result["error"] != nil
	case *test.SimpleTest_Value:
		wanted = matcher.Value
	case *test.SimpleTest_TypedResult:
		if matcher.TypedResult.Result == nil {
			return result["refused"] == nil
		}
		wanted = matcher.TypedResult.Result
	case nil:
		wanted = &expr.Value{Kind: &expr.Value_BoolValue{BoolValue: true}}
	default:
		return false
	}
	if !yields {
		return false
	}
	converted, err := cel.ProtoAsValue(env.CELTypeAdapter(), wanted)
	if err != nil {
		return false
	}
	left, _ := json.Marshal(value)
	right, _ := json.Marshal(typed(converted))
	return string(left) == string(right)
}

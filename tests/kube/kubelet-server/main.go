// What a kubelet serves to the API server, for the small kubelet of the scenarios: `kubectl exec` and `kubectl logs`.
//
// In: a folder in which that kubelet says of each pod, in NAMESPACE_NAME.json, where it is and where its container's output
// is, and the program that runs a command in a namespace and a cgroup. Out: HTTPS with a kubelet's paths; exec speaks
// whatever the API server does (SPDY, WebSocket), by the kubelet's own library. There are no terminals here.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// pod is where a pod is, and its container's first process.
type pod struct {
	Netns  string `json:"netns"`
	Cgroup string `json:"cgroup"`
	Output string `json:"output"`
	Pid    int    `json:"pid"`
}

// kubelet finds pods in a folder and runs commands in them.
type kubelet struct {
	folder, run string
}

func (k kubelet) find(namespace, name string) (*pod, error) {
	// Neither can hold a slash: they are one part of a path each.
	text, err := os.ReadFile(filepath.Join(k.folder, namespace+"_"+name+".json"))
	if err != nil {
		return nil, err
	}
	found := &pod{}
	return found, json.Unmarshal(text, found)
}

// ExecInContainer runs a command beside the pod's container; name is NAMESPACE/NAME.
func (k kubelet) ExecInContainer(ctx context.Context, name, _, _ string, command []string, in io.Reader, out, err io.WriteCloser, tty bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if tty {
		return errors.New("there are no terminals here")
	}
	namespace, name, _ := strings.Cut(name, "/")
	at, failed := k.find(namespace, name)
	if failed != nil {
		return failed
	}
	if at.Pid == 0 {
		return errors.New("the container does not run")
	}
	// With what the container has mounted.
	enter := []string{"nsenter", "--target", strconv.Itoa(at.Pid), "--mount", "--root", "--"}
	arguments := append([]string{"run", "--netns", at.Netns, "--cgroup", at.Cgroup, "--"}, enter...)
	running := exec.CommandContext(ctx, k.run, append(arguments, command...)...)
	if in != nil {
		pipe, failed := running.StdinPipe()
		if failed != nil {
			return failed
		}
		// Not waited for: a command may end before its input does.
		go func() {
			io.Copy(pipe, in)
			pipe.Close()
		}()
	}
	if out != nil {
		running.Stdout = out
	}
	if err != nil {
		running.Stderr = err
	}
	failed = running.Run()
	var code *exec.ExitError
	if errors.As(failed, &code) {
		return &utilexec.ExitErrorWrapper{ExitError: code}
	}
	return failed
}

func (k kubelet) exec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name := r.PathValue("namespace") + "/" + r.PathValue("pod")
	protocols := remotecommand.SupportedStreamingProtocols
	remotecommand.ServeExec(w, r, k, name, "", r.PathValue("container"), r.Form["command"], options, 4*time.Hour, 30*time.Second, protocols)
}

// logs writes the container's output, or its last lines, and goes on for as long as it is asked to follow.
func (k kubelet) logs(w http.ResponseWriter, r *http.Request) {
	at, err := k.find(r.PathValue("namespace"), r.PathValue("pod"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	file, err := os.Open(at.Output)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer file.Close()
	text, _ := io.ReadAll(file)
	if wanted, err := strconv.Atoi(r.FormValue("tailLines")); err == nil {
		lines := strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
		text = []byte(strings.Join(lines[max(0, len(lines)-wanted):], "") + "\n")
	}
	w.Write(text)
	for r.FormValue("follow") == "true" && r.Context().Err() == nil {
		http.NewResponseController(w).Flush()
		if _, err := io.Copy(w, file); err != nil {
			return
		}
		if _, err := k.find(r.PathValue("namespace"), r.PathValue("pod")); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func main() {
	listen := flag.String("listen", "", "address and port")
	certificate := flag.String("certificate", "", "of the server, PEM")
	key := flag.String("key", "", "its key")
	folder := flag.String("pods", "", "what the kubelet says of its pods")
	run := flag.String("run", "", "program that runs a command in a namespace and a cgroup")
	flag.Parse()
	k := kubelet{folder: *folder, run: *run}
	paths := http.NewServeMux()
	paths.HandleFunc("/exec/{namespace}/{pod}/{container}", k.exec)
	paths.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.logs)
	// SPDY and WebSocket take the connection over; HTTP/2 would not let them.
	server := &http.Server{Addr: *listen, Handler: paths, TLSNextProto: nil}
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	fmt.Fprintln(os.Stderr, "serving", *listen)
	log.Fatal(server.ListenAndServeTLS(*certificate, *key))
}

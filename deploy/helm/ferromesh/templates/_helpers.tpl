{{/* The names are fixed: the controller's certificate is for ferromesh-controller.ferromesh-system.svc. */}}
{{- define "ferromesh.checked" -}}
{{- if ne .Release.Namespace "ferromesh-system" -}}
{{- fail (printf "the namespace must be ferromesh-system, not %s: the controller's certificate carries it; use `-n ferromesh-system --create-namespace`" .Release.Namespace) -}}
{{- end -}}
{{- end -}}

{{- define "ferromesh.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "ferromesh.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: ferromesh
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{/* Where the controller may run. */}}
{{- define "ferromesh.controller.place" -}}
nodeSelector:
  kubernetes.io/os: linux
  {{- with .Values.controller.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or .Values.controller.tolerations .Values.nodeTaint }}
tolerations:
{{- with .Values.nodeTaint }}
# Whoever takes it off must run before it is off.
- key: {{ . }}
  operator: Exists
{{- end }}
{{- with .Values.controller.tolerations }}
  {{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What runs before the chart is removed, and goes with it. */}}
{{- define "ferromesh.leave.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

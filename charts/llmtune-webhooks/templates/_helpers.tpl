{{- define "llmtune-webhooks.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "llmtune-webhooks.fullname" -}}
{{- $name := include "llmtune-webhooks.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llmtune-webhooks.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "llmtune-webhooks.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "llmtune-webhooks.selectorLabels" -}}
app.kubernetes.io/name: {{ include "llmtune-webhooks.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "llmtune-webhooks.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "llmtune-webhooks.selectorLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "llmtune-webhooks.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- define "llmtune-webhooks.port" -}}
{{- regexFind "[0-9]+$" .Values.operator.listen -}}
{{- end -}}

{{- /* The ConfigMap that owns the operator's Lease and its ledger. */ -}}
{{- define "llmtune-webhooks.owner" -}}
{{- include "llmtune-webhooks.fullname" . }}-ledger
{{- end -}}

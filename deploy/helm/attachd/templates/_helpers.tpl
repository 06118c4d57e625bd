{{- define "attachd.name" -}}
{{- if contains "attachd" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-attachd" (.Release.Name | trunc 42 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "attachd.selector" -}}
app.kubernetes.io/name: attachd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "attachd.labels" -}}
{{ include "attachd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "attachd.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "attachd.name" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- /* Fails where the values ask for what cannot work; says what would. */ -}}
{{- define "attachd.check" -}}
{{- if not .Values.publicUrl }}
{{- fail "publicUrl: not set; must be what links begin with, https://HOST" }}
{{- end }}
{{- if and (eq .Values.storage.type "s3") (not .Values.storage.s3.bucket) }}
{{- fail "storage.s3.bucket: not set; must be the name of a bucket, with storage.type s3" }}
{{- end }}
{{- $asked := "" }}
{{- if gt (int .Values.replicas) 1 }}{{ $asked = printf "replicas: %d" (int .Values.replicas) }}{{ end }}
{{- if .Values.autoscaling.enabled }}{{ $asked = "autoscaling.enabled" }}{{ end }}
{{- if $asked }}
{{- if not .Values.database.existingSecret }}
{{- fail (printf "%s: SQLite serves one pod; several need a database that they share (database.existingSecret)" $asked) }}
{{- end }}
{{- if ne .Values.storage.type "s3" }}
{{- fail (printf "%s: a volume serves one pod; several need storage.type s3" $asked) }}
{{- end }}
{{- if not .Values.keys.existingSecret }}
{{- fail (printf "%s: several pods need the same keys (keys.existingSecret)" $asked) }}
{{- end }}
{{- end }}
{{- end }}

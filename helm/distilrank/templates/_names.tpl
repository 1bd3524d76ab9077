{{- define "distilrank.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Selector labels of a component's pods. Takes root and component. */}}
{{- define "distilrank.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "distilrank.labels" -}}
{{ include "distilrank.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "distilrank.runs.namespace" -}}
{{- default .Release.Namespace .Values.kubeflow.namespace -}}
{{- end -}}

{{/* Owner of the recurring runs. Unique per release, since a namespace contains no dots; name overrides do not affect it. */}}
{{- define "distilrank.owner" -}}
{{- printf "%s.%s" .Release.Namespace .Release.Name -}}
{{- end -}}

{{/* Name of a service account; empty if it is neither created nor named. Takes root and account. */}}
{{- define "distilrank.account" -}}
{{- $account := index .root.Values.serviceAccounts .account -}}
{{- if $account.name -}}
{{- $account.name -}}
{{- else if $account.create -}}
{{- printf "%s-%s" (include "distilrank.fullname" .root) .account -}}
{{- end -}}
{{- end -}}

{{- define "distilrank.claim" -}}
{{- default (include "distilrank.fullname" .) .Values.storage.existingClaim -}}
{{- end -}}

{{/* Whether the hooks create the volume's folders and check that runs can write to them; empty means no. */}}
{{- define "distilrank.storage.prepared" -}}
{{- with .Values.storage -}}
{{- if and .enabled (or (eq .prepare "always") (and (eq .prepare "auto") (not .existingClaim))) -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The folders that pods write to, relative to the volume, as list items. */}}
{{- define "distilrank.storage.folders" -}}
{{- $root := printf "%s/" .Values.storage.path -}}
{{- $folders := list "hf" "log" "resume" -}}
{{- if .Values.ui.enabled }}{{ $folders = append $folders "evidently" }}{{ end -}}
{{- range list (include "distilrank.registry" .) (default (printf "%sversions" $root) .Values.registry.cache_dir) -}}
{{- if hasPrefix $root . }}{{ $folders = append $folders (trimPrefix $root . | trimSuffix "/") }}{{ end -}}
{{- end -}}
{{- $folders | uniq | sortAlpha | toYaml -}}
{{- end -}}

{{- define "distilrank.registry" -}}
{{- default (ternary (printf "%s/registry" .Values.storage.path) "" .Values.storage.enabled) .Values.registry.uri -}}
{{- end -}}

{{/* Full name of one of the three images. Takes root and image. */}}
{{- define "distilrank.image" -}}
{{- $image := index .root.Values.images .image -}}
{{- $name := list .root.Values.images.registry $image.repository | compact | join "/" -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- $full := printf "%s:%s" $name (default .root.Chart.AppVersion $image.tag) -}}
{{- include "distilrank.immutable" (dict "image" $full "where" (printf "images.%s" .image)) -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{/* Refuse an image whose name may refer to different content later. Takes image and where it is set. */}}
{{- define "distilrank.immutable" -}}
{{- if not (contains "@" .image) -}}
{{- $last := splitList "/" .image | last -}}
{{- $tag := ternary (splitList ":" $last | last) "" (contains ":" $last) -}}
{{- if not $tag -}}
{{- fail (printf "%s is %q, without tag or digest: expected a tag that is never pushed again (a version) or @sha256:DIGEST" .where .image) -}}
{{- end -}}
{{- if has (lower $tag) (list "latest" "main" "master" "dev" "edge" "nightly" "stable" "head") -}}
{{- fail (printf "%s is %q, whose tag moves: expected a tag that is never pushed again (a version) or a digest" .where .image) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Defaults of every configuration. */}}
{{- define "distilrank.defaults" -}}
{{- $train := include "distilrank.image" (dict "root" . "image" "train") -}}
{{- $cluster := dict "images" (dict "ops" (include "distilrank.image" (dict "root" . "image" "ops")) "train" $train) -}}
{{- with .Values.images.pullSecrets }}{{ $_ := set $cluster "pull_secrets" . }}{{ end -}}
{{- with include "distilrank.account" (dict "root" . "account" "runner") }}{{ $_ := set $cluster "service_account" . }}{{ end -}}
{{- $trainjob := dict "image" $train -}}
{{- $all := dict "registry" (deepCopy .Values.registry) "compute" (dict "trainjob" $trainjob) -}}
{{- $_ := set $all.registry "uri" (include "distilrank.registry" .) -}}
{{- if .Values.storage.enabled -}}
{{- $path := .Values.storage.path -}}
{{- $_ := set $cluster "env" (dict "HF_HOME" (printf "%s/hf" $path)) -}}
{{- $_ := set $trainjob "claim" (include "distilrank.claim" .) -}}
{{- $_ := set $trainjob "mount" $path -}}
{{- $_ := set $all.compute "checkpoint_dir" (printf "%s/resume" $path) -}}
{{- $_ := set $all "prepare" (dict "log_cache_dir" (printf "%s/log" $path)) -}}
{{- $_ := set $all.registry "cache_dir" (default (printf "%s/versions" $path) .Values.registry.cache_dir) -}}
{{- if .Values.ui.enabled }}{{ $_ := set $all "drift" (dict "workspace" (include "distilrank.workspace" .)) }}{{ end -}}
{{- end -}}
{{- $_ := set $all "cluster" (mustMergeOverwrite $cluster (deepCopy .Values.cluster)) -}}
{{- toYaml $all -}}
{{- end -}}

{{- define "distilrank.workspace" -}}
{{- printf "%s/evidently" .Values.storage.path -}}
{{- end -}}

{{/* A configuration file: the configuration's keys, with the chart's as defaults. Takes root and name. */}}
{{- define "distilrank.configuration" -}}
{{- $root := .root -}}
{{- $where := printf "configurations.%s" .name -}}
{{- $all := mustMergeOverwrite (include "distilrank.defaults" $root | fromYaml) (deepCopy (index $root.Values.configurations .name)) -}}
{{- if $root.Values.storage.enabled -}}
{{- $mounted := false -}}
{{- range $all.cluster.volumes }}{{ if eq .path $root.Values.storage.path }}{{ $mounted = true }}{{ end }}{{ end -}}
{{- if not $mounted -}}
{{- $volume := dict "claim" (include "distilrank.claim" $root) "path" $root.Values.storage.path -}}
{{- $_ := set $all.cluster "volumes" (append (default list $all.cluster.volumes) $volume) -}}
{{- end -}}
{{- end -}}
{{- if include "distilrank.storage.prepared" $root -}}
{{- range $key, $own := dict "run_as_user" $root.Values.pods.runAsUser "run_as_group" $root.Values.pods.runAsGroup -}}
{{- $runs := default 10001 (index $all.cluster $key) -}}  {{- /* the images' default */}}
{{- if ne (int $runs) (int $own) -}}
{{- fail (printf "%s: cluster.%s of runs is %d, but the chart's pods have %d (pods.%s): expected the same, since both write to the volume, or storage.prepare: never" $where $key (int $runs) (int $own) (camelcase $key | untitle)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $kind, $image := $all.cluster.images -}}
{{- include "distilrank.immutable" (dict "image" $image "where" (printf "%s.cluster.images.%s" $where $kind)) -}}
{{- end -}}
{{- $uri := $all.registry.uri -}}
{{- if not $uri -}}
{{- fail (printf "%s: no registry is named: expected registry.uri (gs://BUCKET/PREFIX or a folder of a volume), or storage.enabled" $where) -}}
{{- end -}}
{{- if not (or (hasPrefix "/" $uri) (hasPrefix "gs://" $uri)) -}}
{{- fail (printf "%s: registry.uri is %q, which is a different folder in every pod: expected gs://BUCKET/PREFIX, or the absolute path of a folder of a volume" $where $uri) -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* The schedule file. */}}
{{- define "distilrank.schedules" -}}
{{- $schedules := list -}}
{{- range .Values.schedules -}}
{{- $schedules = append $schedules (set (deepCopy .) "config" (printf "%s.yaml" .config)) -}}
{{- end -}}
{{- toYaml (dict "owner" (include "distilrank.owner" .) "timezone" .Values.kubeflow.timezone "schedules" $schedules) -}}
{{- end -}}

{{/* Refuse contradictory values before any object is created. */}}
{{- define "distilrank.check" -}}
{{- $values := .Values -}}
{{- if and .Values.schedules (not .Values.kubeflow.host) -}}
{{- fail "schedules are declared, but kubeflow.host is empty: expected the URL of the Kubeflow Pipelines API, such as http://ml-pipeline.kubeflow:8888" -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.schedules -}}
{{- if has .name $names }}{{ fail (printf "two schedules are called %q: expected unique names" .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- if not (hasKey $values.configurations .config) -}}
{{- fail (printf "schedule %s: config is %q: expected a name in configurations (%s)" .name .config (keys $values.configurations | sortAlpha | join ", " | default "there are none")) -}}
{{- end -}}
{{- end -}}
{{- with .Values.kubeflow -}}
{{- if and .host .multiUser (eq .auth.kind "none") -}}
{{- fail "kubeflow.multiUser is true, but kubeflow.auth.kind is \"none\": expected serviceAccount or token" -}}
{{- end -}}
{{- if and (eq .auth.kind "token") (not .auth.secret) -}}
{{- fail "kubeflow.auth.kind is \"token\", but kubeflow.auth.secret is empty: expected the name of the Secret with the token" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ui.enabled (not .Values.storage.enabled) -}}
{{- fail "ui.enabled is true, but storage.enabled is not: expected a volume that keeps the Evidently workspace" -}}
{{- end -}}
{{- $shared := or .Values.ui.enabled .Values.serving.enabled .Values.collection.enabled -}}
{{- if and .Values.storage.enabled $shared (ne (include "distilrank.runs.namespace" .) .Release.Namespace) -}}
{{- fail (printf "storage is in the namespace of the runs (%s), where service, UI and collection of the namespace %s cannot mount it: expected one namespace for both, or a registry in gs:// and storage.enabled: false" (include "distilrank.runs.namespace" .) .Release.Namespace) -}}
{{- end -}}
{{- with .Values.storage -}}
{{- if and .enabled (not .existingClaim) (not .accessMode) -}}
{{- fail "storage.accessMode is empty, but the chart creates the claim: expected ReadWriteMany, with a storage class that offers it (NFS, CephFS, Filestore, EFS, Azure Files; with most clusters' default class the claim would stay Pending), or ReadWriteOnce, which any class offers, but then every pod that mounts it must run on one node" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.retries.enabled (not .Values.kubeflow.host) -}}
{{- fail "retries.enabled is true, but kubeflow.host is empty: expected the URL of the Kubeflow Pipelines API, such as http://ml-pipeline.kubeflow:8888" -}}
{{- end -}}
{{- if or .Values.serving.enabled .Values.collection.enabled -}}
{{- $uri := include "distilrank.registry" . -}}
{{- if not $uri -}}
{{- fail "serving or collection is enabled, but no registry is named: expected registry.uri, or storage.enabled" -}}
{{- end -}}
{{- if not (or (hasPrefix "gs://" $uri) (and .Values.storage.enabled (hasPrefix (printf "%s/" .Values.storage.path) $uri))) -}}
{{- fail (printf "registry.uri is %q: expected gs://BUCKET/PREFIX, or a folder below storage.path (%s) with storage.enabled" $uri .Values.storage.path) -}}
{{- end -}}
{{- end -}}
{{- with .Values.serving -}}
{{- if and .autoscaling.enabled (gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- fail (printf "serving.autoscaling.minReplicas is %v: expected at most maxReplicas (%v)" .autoscaling.minReplicas .autoscaling.maxReplicas) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.serving.enabled) -}}
{{- fail "serviceMonitor.enabled is true, but serving.enabled is not: expected serving.enabled: true, or no ServiceMonitor" -}}
{{- end -}}
{{- end -}}

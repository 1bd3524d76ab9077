{{/* Security context of all pods: the restricted profile of the Pod Security Standards. */}}
{{- define "distilrank.pod" -}}
{{ include "distilrank.pod.fields" (dict "root" . "fsGroup" true) }}
{{- end -}}

{{/* The same, with or without fsGroup. Takes root and fsGroup. */}}
{{- define "distilrank.pod.fields" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int .root.Values.pods.runAsUser }}
  runAsGroup: {{ int .root.Values.pods.runAsGroup }}
  {{- if .fsGroup }}
  fsGroup: {{ int .root.Values.pods.runAsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .root.Values.pods.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pods.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pods.priorityClass }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Settings of all containers. Takes root, image and resources. */}}
{{- define "distilrank.container" -}}
image: {{ include "distilrank.image" . }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- with .resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Environment variables of all containers, as list items. */}}
{{- define "distilrank.env" -}}
{{- range $name, $value := .Values.pods.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* Writable folders; the root file system is read-only. */}}
{{- define "distilrank.writable.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: home
  mountPath: /home/distilrank
{{- end -}}

{{- define "distilrank.writable.volumes" -}}
- name: tmp
  emptyDir: {}
- name: home
  emptyDir: {}
{{- end -}}

{{/* Metadata of a pod. Takes root, component and annotations. */}}
{{- define "distilrank.pod.metadata" -}}
{{- $annotations := merge (default dict .annotations) .root.Values.pods.annotations -}}
labels:
  {{- include "distilrank.labels" . | nindent 2 }}
  {{- with .root.Values.pods.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A Job that Helm runs as a hook. Takes root, name, namespace, component, hooks, weight, pod and failAtOnce. */}}
{{- define "distilrank.hook" -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "distilrank.fullname" .root }}-{{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "distilrank.labels" . | nindent 4 }}
  annotations:
    helm.sh/hook: {{ .hooks }}
    helm.sh/hook-weight: {{ .weight | quote }}
    # A failed Job is kept with its log until the next one; Helm 3.18 and newer print the log of both.
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
    helm.sh/hook-output-log-policy: hook-succeeded,hook-failed
spec:
  backoffLimit: {{ int .root.Values.hooks.retries }}
  activeDeadlineSeconds: {{ int .root.Values.hooks.deadlineSeconds }}
  ttlSecondsAfterFinished: 604800  # a week: a hook is no part of the release, so no uninstall removes it
  {{- if .failAtOnce }}
  podFailurePolicy:
    rules:
      - action: FailJob
        onExitCodes:
          operator: In
          values: [2]  # bad input: another pod would say the same
  {{- end }}
  template:
    metadata:
      {{- include "distilrank.pod.metadata" (merge (dict "labels" .root.Values.hooks.podLabels) .) | nindent 6 }}
    spec:
      {{- .pod | nindent 6 }}
{{- end -}}

{{/* The pod that runs a `python -m pipelines` command on the schedule file, as the submitter. Takes root, command, resources and arguments. */}}
{{- define "distilrank.submitter" -}}
{{- $root := .root -}}
{{- $auth := $root.Values.kubeflow.auth -}}
{{- $ca := $root.Values.kubeflow.ca -}}
restartPolicy: Never
serviceAccountName: {{ include "distilrank.account" (dict "root" $root "account" "submitter") | default "default" }}
{{ include "distilrank.pod" $root }}
containers:
  - name: {{ first .command }}
    {{- include "distilrank.container" (dict "root" $root "image" "ops" "resources" .resources) | nindent 4 }}
    command: [python, -m, pipelines, {{ join ", " .command }}]
    args:
      - --file=/etc/distilrank/schedules.yaml
      - --host={{ $root.Values.kubeflow.host }}
      {{- if $root.Values.kubeflow.multiUser }}
      - --namespace={{ include "distilrank.runs.namespace" $root }}
      {{- end }}
      {{- if ne $auth.kind "none" }}
      - --token-file=/var/run/secrets/kubeflow/pipelines/token
      {{- end }}
      {{- if $ca.configMap }}
      - --ca-file=/etc/kubeflow/{{ $ca.key }}
      {{- end }}
      {{- range .arguments }}
      - {{ . }}
      {{- end }}
    {{- with include "distilrank.env" $root }}
    env:
      {{- . | nindent 6 }}
    {{- end }}
    volumeMounts:
      {{- include "distilrank.writable.mounts" . | nindent 6 }}
      - name: configurations
        mountPath: /etc/distilrank
        readOnly: true
      {{- if ne $auth.kind "none" }}
      - name: token
        mountPath: /var/run/secrets/kubeflow/pipelines
        readOnly: true
      {{- end }}
      {{- if $ca.configMap }}
      - name: authority
        mountPath: /etc/kubeflow
        readOnly: true
      {{- end }}
volumes:
  {{- include "distilrank.writable.volumes" . | nindent 2 }}
  - name: configurations
    configMap:
      name: {{ include "distilrank.fullname" $root }}-configurations
  {{- if eq $auth.kind "serviceAccount" }}
  - name: token
    projected:
      sources:
        - serviceAccountToken:
            audience: {{ $auth.audience | quote }}
            expirationSeconds: 7200
            path: token
  {{- else if eq $auth.kind "token" }}
  - name: token
    secret:
      secretName: {{ $auth.secret }}
      items:
        - key: {{ $auth.key }}
          path: token
  {{- end }}
  {{- if $ca.configMap }}
  - name: authority
    configMap:
      name: {{ $ca.configMap }}
  {{- end }}
{{- end -}}

{{/* The pod that creates or checks the volume's folders, in the namespace of the runs. Takes root, verb and fsGroup. */}}
{{- define "distilrank.storage" -}}
{{- $root := .root -}}
restartPolicy: Never
serviceAccountName: default
{{ include "distilrank.pod.fields" . }}
containers:
  - name: storage
    {{- include "distilrank.container" (dict "root" $root "image" "ops" "resources" $root.Values.hooks.resources) | nindent 4 }}
    command: [python, -m, distilrank, volume, {{ .verb }}]
    args:
      - {{ $root.Values.storage.path }}
      {{- include "distilrank.storage.folders" $root | nindent 6 }}
    {{- with include "distilrank.env" $root }}
    env:
      {{- . | nindent 6 }}
    {{- end }}
    volumeMounts:
      {{- include "distilrank.writable.mounts" . | nindent 6 }}
      - name: storage
        mountPath: {{ $root.Values.storage.path }}
volumes:
  {{- include "distilrank.writable.volumes" . | nindent 2 }}
  - name: storage
    persistentVolumeClaim:
      claimName: {{ include "distilrank.claim" $root }}
{{- end -}}

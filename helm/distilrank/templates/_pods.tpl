{{/* What all pods of the chart have: the restricted profile of Kubernetes' Pod Security Standards. */}}
{{- define "distilrank.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int .Values.pods.runAsUser }}
  runAsGroup: {{ int .Values.pods.runAsGroup }}
  fsGroup: {{ int .Values.pods.runAsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.pods.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pods.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pods.priorityClass }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* What all containers have. Takes root, image and resources. */}}
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

{{/* Environment of all containers, as list items. */}}
{{- define "distilrank.env" -}}
{{- range $name, $value := .Values.pods.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* The folders that may be written where the root file system may not. */}}
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

{{/* A Job that runs `schedule` in the ops image. Takes root, verb, hooks and arguments. */}}
{{- define "distilrank.hook" -}}
{{- $root := .root -}}
{{- $name := printf "%s-schedules-%s" (include "distilrank.fullname" $root) .verb -}}
{{- $component := "schedules" -}}
{{- $auth := $root.Values.kubeflow.auth -}}
{{- $ca := $root.Values.kubeflow.ca -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "distilrank.labels" (dict "root" $root "component" $component) | nindent 4 }}
  annotations:
    helm.sh/hook: {{ .hooks }}
    # Nothing else: the log of one that failed must stay until the next.
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  backoffLimit: {{ int $root.Values.hooks.retries }}
  activeDeadlineSeconds: {{ int $root.Values.hooks.deadlineSeconds }}
  template:
    metadata:
      {{- include "distilrank.pod.metadata" (dict "root" $root "component" $component "labels" $root.Values.hooks.podLabels) | nindent 6 }}
    spec:
      restartPolicy: Never
      serviceAccountName: {{ include "distilrank.account" (dict "root" $root "account" "submitter") | default "default" }}
      {{- include "distilrank.pod" $root | nindent 6 }}
      containers:
        - name: schedule
          {{- include "distilrank.container" (dict "root" $root "image" "ops" "resources" $root.Values.hooks.resources) | nindent 10 }}
          command: [python, -m, pipelines, schedule, {{ .verb }}]
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
            {{- . | nindent 12 }}
          {{- end }}
          volumeMounts:
            {{- include "distilrank.writable.mounts" . | nindent 12 }}
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
        {{- include "distilrank.writable.volumes" . | nindent 8 }}
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

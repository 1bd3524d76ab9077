{{/* A Service for a component's port `http`. Takes root, component and service. */}}
{{- define "distilrank.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "distilrank.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "distilrank.labels" . | nindent 4 }}
  {{- with .service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ .service.type }}
  selector:
    {{- include "distilrank.selector" . | nindent 4 }}
  ports:
    - name: http
      port: {{ int .service.port }}
      targetPort: http
{{- end -}}

// What the public API answers, as far as this page reads it. GET /openapi.json has all of it.
export type Status = "queued" | "running" | "succeeded" | "failed" | "cancelled" | "expired";

export interface Queue {
  position: number;
  eta_s: number | null;
  blocked_by: string | null;
  wake_at: number | null;
}

export interface Trouble {
  message: string;
  type?: string;
  code: string | null;
}

export interface Job {
  id: string;
  endpoint: string;
  model: string;
  status: Status;
  queue: Queue | null;
  conversation: string | null;
  error: Trouble | null;
  metadata: Record<string, string>;
}

export interface Session {
  id: string;
  title: string | null;
  system_prompt: string | null;
  turns: number;
  preview: string | null;
  last_active_at: number;
}

export interface Attachment {
  id: string;
  name: string;
  kind: "word" | "excel" | "ppt" | "pdf" | "zip" | "txt" | "image" | "unknown";
  bytes: number;
  url: string;
}

export interface Message {
  id: string;
  turn: number;
  job_id: string;
  role: "user" | "assistant";
  status: Status;
  starts_afresh: boolean;
  text: string | null;
  images: { url: string; content_type: string | null }[];
  attachments: Attachment[];
  error: Trouble | null;
  created_at: number | null;
}

export interface Page<T> {
  data: T[];
  has_more: boolean;
  last_id: string | null;
}

export interface Balance {
  has_budget: boolean;
  available_usd: number | null;
  spent_usd: number;
}

export interface UsageRow {
  day: string;
  calls: number;
  input_tokens: number;
  output_tokens: number;
  images: number;
  cost_usd: number;
}

export const isOver = (status: Status): boolean => status !== "queued" && status !== "running";

// How the page looks to this visitor: theme and language.
import { watchEffect } from "vue";
import { createI18n } from "vue-i18n";
import { en } from "../words/en";
import { zh } from "../words/zh";
import { stored } from "./stored";

export type Theme = "system" | "dark" | "light";
export type Language = "en" | "zh";

const first: Language = (navigator.languages[0] ?? navigator.language).toLowerCase().startsWith("zh") ? "zh" : "en";
export const theme = stored<Theme>("theme", "system");
export const language = stored<Language>("language", first);
export const i18n = createI18n({ legacy: false, locale: language.value, fallbackLocale: "en", messages: { en, zh } });

/** The words of the visitor's language, for texts outside components. */
export const say = (...words: [string, Record<string, unknown>?]): string => i18n.global.t(words[0], words[1] ?? {});

watchEffect(() => {
  i18n.global.locale.value = language.value;
  document.documentElement.lang = language.value === "zh" ? "zh-CN" : "en";
});
watchEffect(() => {
  document.documentElement.dataset.theme = theme.value;
});

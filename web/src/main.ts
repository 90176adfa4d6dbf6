import { createApp } from "vue";
import App from "./App.vue";
import { i18n } from "./state/look";
import "./style/tokens.css";
import "./style/frame.css";
import "./style/talk.css";
import "./style/markdown.css";

createApp(App).use(i18n).mount("#app");
